"""From a `ClusterSpec` to Kubernetes objects: one module a family, each a pure function from the spec to plain values."""
