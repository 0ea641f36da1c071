"""One KubeRay cluster as a typed description, the manifests made from it, and the way to the Kubernetes API."""
