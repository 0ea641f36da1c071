"""A whole cluster on this machine, to look at and to submit to: up, down, status, doctor."""
