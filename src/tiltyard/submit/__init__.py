"""From a laptop to a cluster: packing a working directory, sending it once, following and ending what was sent."""
