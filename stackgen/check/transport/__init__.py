"""Requests to a server: the HTTP session, streams and their transcript, faults, deadlines, redaction."""
