"""How a request travels: the HTTP session, streams and their transcript, faults, deadlines, redaction."""
