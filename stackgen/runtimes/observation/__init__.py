"""What runtimes report: container states for the check, evidence for a diagnosis, facts for doctor."""
