"""Waits, for a stated time, until objects are what they should be; says what holds them up where they are not.

Each object is looked at, then watched from that version on; a watch that the server closes is opened again. Where the time
is over, or an object has failed for good, the pods behind it are asked why: an image that cannot be pulled, no node with a
GPU, a quota.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tiltyard.errors import ClusterError
from tiltyard.kuberay.api import Api, ForbiddenError, NotThereError, Ref

READY, FAILED, WAITING = "ready", "failed", "waiting"
JOB_ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})
"""``ValidationFailed`` is an end too: the operator never looks at such a job again."""
_WATCH_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How an object stands: ``ready``, ``failed`` (for good) or ``waiting``, and in which words of Kubernetes."""

    what: str
    text: str


def state_of(there: Mapping[str, Any] | None) -> State:
    """How an object stands; kinds that have nothing to wait for are ready."""
    if there is None:
        return State(what=WAITING, text="not there")
    status = there.get("status") or {}
    rule = _RULES.get(there["kind"])
    return State(what=READY, text="there") if rule is None else rule(there, status)


def wait(
    api: Api,
    refs: Iterable[Ref],
    *,
    timeout_s: float,
    say: Callable[[Ref, State], None] = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Waits until every object is ready.

    Args:
        api: The cluster.
        refs: The objects.
        timeout_s: For all of them together.
        say: Told each change.
        clock: Seconds that only grow.
        pause: Waits.

    Raises:
        ClusterError: If one fails for good or the time is over; with the reasons that its pods and events give.
    """
    deadline = clock() + timeout_s
    for ref in refs:
        state = until(api, ref, lambda s: s.what != WAITING, deadline, say, clock=clock, pause=pause)
        if state.what == READY:
            continue
        over = f"is not ready after {timeout_s:.0f} s" if state.what == WAITING else "has failed"
        raise ClusterError(_held_up(ref, f"{ref} {over}: {state.text}", reasons(api, ref)))


def until(
    api: Api,
    ref: Ref,
    done: Callable[[State], bool],
    deadline: float,
    say: Callable[[Ref, State], None] = lambda *_: None,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> State:
    """How an object stands when ``done`` says so, or when the deadline has come."""
    told: State | None = None
    while True:
        there = api.get(ref)
        state = state_of(there)
        if state != told:
            say(ref, state)
            told = state
        left = deadline - clock()
        if done(state) or left <= 0:
            return state
        if there is not None:
            version = str(there["metadata"].get("resourceVersion", ""))
            for event, changed in api.watch(ref, version=version, timeout_s=min(left, _WATCH_S)):
                if event == "DELETED" or state_of(changed) != state or clock() > deadline:
                    break  # it is read again
        pause(min(1.0, max(0.0, deadline - clock())))


def reasons(api: Api, ref: Ref) -> list[str]:
    """Why an object is held up: what its pods wait for, and the warnings of its events."""
    found: list[str] = []
    names = {ref.name}
    try:
        clusters, selectors = _behind(api.get(ref) or {})
        names |= clusters
        for selector in selectors:
            for pod in api.list("Pod", ref.namespace, selector):
                names.add(str(pod["metadata"]["name"]))
                found += [f"pod {pod['metadata']['name']}: {text}" for text in pod_reasons(pod)]
        for event in api.list("Event", ref.namespace):
            if event.get("type") == "Warning" and (event.get("involvedObject") or {}).get("name") in names:
                found.append(f"{event['involvedObject']['name']}: {event.get('reason')}: {event.get('message')}")
    except (ForbiddenError, NotThereError) as error:
        found.append(f"(why cannot be read: {error})")
    return list(dict.fromkeys(found))[:12]


def _behind(there: Mapping[str, Any]) -> tuple[set[str], list[str]]:
    """The RayClusters behind an object, and the labels of its pods.

    KubeRay labels a pod with its cluster (``labelPod`` in ``common/pod.go``), not with the RayJob or RayService above it.
    """
    kind, name, status = there.get("kind"), there.get("metadata", {}).get("name"), there.get("status") or {}
    clusters = {str(name)} if kind == "RayCluster" else set()
    for part in (status, status.get("activeServiceStatus") or {}, status.get("pendingServiceStatus") or {}):
        if part.get("rayClusterName"):
            clusters.add(str(part["rayClusterName"]))
    selectors = [f"ray.io/cluster={cluster}" for cluster in sorted(clusters)]
    if kind == "RayJob":
        selectors.append(f"job-name={name}")  # the submitting pod
    labels = ((there.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
    if labels:
        selectors.append(",".join(f"{k}={v}" for k, v in labels.items()))
    return clusters, selectors


def pod_reasons(pod: Mapping[str, Any]) -> list[str]:
    """What a pod waits for, or why it ended; empty where it runs."""
    status = pod.get("status") or {}
    found = [
        f"{c.get('reason')}: {c.get('message')}"
        for c in status.get("conditions") or ()
        if c.get("type") == "PodScheduled" and c.get("status") == "False"
    ]
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        state = container.get("state") or {}
        for phase in ("waiting", "terminated"):
            detail = state.get(phase) or {}
            reason = detail.get("reason")
            if reason and reason not in {"ContainerCreating", "PodInitializing", "Completed"}:
                message = f": {detail['message']}" if detail.get("message") else ""
                found.append(f"{container.get('name')}: {reason}{message}")
    return found


def _held_up(ref: Ref, what: str, why: list[str]) -> str:
    told = "\n".join(f"  {line}" for line in why) or "  (neither its pods nor its events say why)"
    hints = {
        "Pull": "Push the image, or name its pull secret (image in cluster/cluster.py).",
        "Unschedulable": "No node fits: add nodes, or ask for less (workers in cluster/cluster.py).",
        "exceeded quota": "The quota is used up: wait, or raise it (quota in cluster/cluster.py).",
    }
    text = " ".join(hint for word, hint in hints.items() if word in told)
    hint = text or f"Look closer: kubectl -n {ref.namespace} describe {ref.kind.lower()} {ref.name}"
    return f"{what}\n{told}\n{hint}"


def _condition(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next((c for c in status.get("conditions") or () if c.get("type") == name), {})


def _raycluster(there: Mapping[str, Any], status: Mapping[str, Any]) -> State:
    provisioned, head = _condition(status, "RayClusterProvisioned"), _condition(status, "HeadPodReady")
    if status.get("state") == "failed" or _condition(status, "ReplicaFailure").get("status") == "True":
        text = status.get("reason") or _condition(status, "ReplicaFailure").get("message") or "failed"
        return State(what=WAITING, text=str(text))  # the operator tries again
    if status.get("observedGeneration", there["metadata"].get("generation")) != there["metadata"].get("generation"):
        return State(what=WAITING, text="not looked at yet")
    if status.get("state") == "ready" or provisioned.get("status") == "True":
        workers = f"{status.get('readyWorkerReplicas', 0)} of {status.get('desiredWorkerReplicas', 0)} workers"
        return State(what=READY, text=workers)
    return State(what=WAITING, text=str(head.get("message") or head.get("reason") or "the operator has not begun"))


def _rayservice(_: Mapping[str, Any], status: Mapping[str, Any]) -> State:
    ready = _condition(status, "Ready") or _condition(status, "RayServiceReady")
    if ready.get("status") == "True":
        return State(what=READY, text=f"{status.get('numServeEndpoints', 0)} endpoints")
    return State(what=WAITING, text=str(ready.get("message") or ready.get("reason") or "no endpoint yet"))


def _rayjob(_: Mapping[str, Any], status: Mapping[str, Any]) -> State:
    deployment = str(status.get("jobDeploymentStatus") or "New")
    job, reason = status.get("jobStatus"), status.get("reason")
    words = " ".join(str(w) for w in (deployment, job, reason) if w)
    text = f"{words}: {status['message']}" if status.get("message") else words
    if deployment not in JOB_ENDED:
        return State(what=WAITING, text=text)
    return State(what=READY if deployment == "Complete" and job in {"SUCCEEDED", None, ""} else FAILED, text=text)


def _deployment(there: Mapping[str, Any], status: Mapping[str, Any]) -> State:
    wanted = (there.get("spec") or {}).get("replicas", 1)
    ready = status.get("readyReplicas", 0)
    seen = status.get("observedGeneration", 0) >= there["metadata"].get("generation", 0)
    return State(what=READY if seen and ready >= wanted else WAITING, text=f"{ready} of {wanted} pods")


_RULES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], State]] = {
    "RayCluster": _raycluster,
    "RayService": _rayservice,
    "RayJob": _rayjob,
    "Deployment": _deployment,
    "StatefulSet": _deployment,
}
WAITED_FOR = frozenset(_RULES) - {"RayJob"}
"""Kinds of a cluster that become ready."""
