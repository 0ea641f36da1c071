"""What a Ray that Tiltyard starts is told about Serve, in its environment. Pure."""

SERVE_ENV = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}
"""Serve's controller looks at everything ten times a second by itself, which takes a third of a core with two models
(measured); four times is soon enough to start what died, and leaves the core to the models. It looks for a proxy every ten
seconds and misses it three times before it starts another: half a minute without HTTP, where ten seconds will do. A replica
answers on the loop that Serve talks to it on, a thread fewer on the way: what computes or waits is in other threads already."""
SERVE_ALONE_ENV = {**SERVE_ENV, "RAY_worker_niceness": "0"}
"""Where the Ray is for serving alone: its workers answer callers, and Ray's niceness of 15 lets anything else go first."""
