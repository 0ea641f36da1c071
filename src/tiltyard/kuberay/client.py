"""The Kubernetes API, by the official client: every answer that is an error becomes one of `tiltyard.kuberay.api`'s.

The context is the caller's; no global configuration is read into this process or changed. Requests end: each has a time
limit, 429 and 5xx are asked again as long as the server says, at most `PATIENCE_S` together.
"""

from __future__ import annotations

import json
import os
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import DynamicApiError

from tiltyard.errors import ClusterError
from tiltyard.kuberay import api
from tiltyard.kuberay.api import KINDS, MANAGER, Kind, Ref

CONNECT_S, ANSWER_S = 10, 60
PATIENCE_S, LOST_S = 60.0, 5.0
"""How long a server that is busy is asked again, and one that does not answer: a wrong address stays wrong."""
_POD_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Kubernetes:
    """One API server, as `api.Api`.

    Args:
        context: Of the kubeconfig; its current one where None. In a pod without a kubeconfig, the pod's own account.
        kubeconfig: Another file than KUBECONFIG or ``~/.kube/config``.
        patience_s: How long 429, 5xx and lost connections are asked again.
        pause: Waits.

    Raises:
        ClusterError: If there is no such configuration.
    """

    def __init__(
        self,
        *,
        context: str | None = None,
        kubeconfig: str | None = None,
        patience_s: float = PATIENCE_S,
        answer_s: float = ANSWER_S,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._patience_s, self._answer_s, self._pause = patience_s, answer_s, pause
        kubeconfig = kubeconfig or os.environ.get("KUBECONFIG")  # the client looks when it is imported, and not again
        configuration = client.Configuration()
        configuration.retries = False  # counted here, where it can be said
        try:
            if context is None and kubeconfig is None and (_POD_FOLDER / "token").exists():
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                self.namespace = (_POD_FOLDER / "namespace").read_text().strip()
                self.server = str(configuration.host)
                found = client.ApiClient(configuration=configuration)
            else:
                found = config.new_client_from_config(  # type: ignore[no-untyped-call]
                    config_file=kubeconfig,
                    context=context,
                    persist_config=False,
                    client_configuration=configuration,
                )
                self.namespace = _namespace(context, kubeconfig)
                self.server = str(configuration.host)
        except (config.ConfigException, OSError) as error:
            wanted = f"context {context!r}" if context else "a kubeconfig with a current context"
            raise ClusterError(
                f"No way to Kubernetes: {error}. Wanted: {wanted}, in KUBECONFIG or ~/.kube/config. See what there is: kubectl "
                "config get-contexts"
            ) from error
        self._finalizer = weakref.finalize(self, found.close)  # connections are closed by nobody else
        # Kinds are known (`api.KINDS`), so nothing is discovered, and no cache is written.
        self._client = DynamicClient(found, discoverer=lambda *_: None)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Gives its connections back."""
        self._finalizer()

    def get(self, ref: Ref) -> dict[str, Any] | None:
        """The object, or None where it, or its kind, is not there."""
        try:
            return self._json("get", _path(ref), f"read {ref}")
        except api.NotThereError:
            return None

    def list(self, kind: str, namespace: str | None, selector: str = "") -> list[dict[str, Any]]:
        """Objects of a kind, by labels; all pages."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            query = [("limit", "500")]
            query += [("labelSelector", selector)] if selector else []
            query += [("continue", token)] if token else []
            page = self._json("get", _folder(KINDS[kind], namespace), f"list {KINDS[kind].plural}", query)
            found += page.get("items", [])
            token = page.get("metadata", {}).get("continue", "")
            if not token:
                return found

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        """Server-side apply as `MANAGER`; unknown fields are refused by the server, not dropped."""
        ref = Ref.of(manifest)
        query = [("fieldManager", MANAGER), ("fieldValidation", "Strict"), ("force", "true" if force else "false")]
        query += [("dryRun", "All")] if dry_run else []
        return self._json(
            "patch", _path(ref), f"apply {ref}", query, body=manifest, content_type="application/apply-patch+yaml"
        )

    def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """A new object."""
        ref = Ref.of(manifest)
        query = [("fieldManager", MANAGER), ("fieldValidation", "Strict")]
        return self._json("post", _folder(KINDS[ref.kind], ref.namespace), f"create {ref}", query, body=manifest)

    def delete(self, ref: Ref, *, uid: str) -> bool:
        """Deletes the object with that uid; False where it is gone."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._json("delete", _path(ref), f"delete {ref}", body=body)
        except api.NotThereError:
            return False
        return True

    def watch(self, ref: Ref, *, version: str, timeout_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events of one object; ends quietly where the server closes the watch or loses the version."""
        query = [
            ("watch", "true"),
            ("fieldSelector", f"metadata.name={ref.name}"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(max(1, int(timeout_s)))),
        ]
        try:
            response = self._client.request(
                "get",
                _folder(KINDS[ref.kind], ref.namespace),
                query_params=query,
                serialize=False,
                _request_timeout=(CONNECT_S, timeout_s + 5),
            )
        except DynamicApiError as error:
            if error.status in {410, 429} or error.status >= 500:
                return
            raise _told(error, f"watch {ref}", self.server) from error
        except urllib3.exceptions.HTTPError:
            return
        rest = b""
        try:
            for chunk in response.stream(amt=None, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event.get("type") == "ERROR":  # the version is too old, or the server ends it
                        return
                    yield str(event["type"]), event["object"]
        except (urllib3.exceptions.HTTPError, ValueError, OSError):
            return
        finally:
            response.close()

    def _json(
        self,
        method: str,
        path: str,
        what: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """One request and its answer; asked again where the server is busy or away."""
        begun = time.monotonic()
        deadline, lost = begun + self._patience_s, begun + min(self._patience_s, LOST_S)
        wait = 0.5
        while True:
            try:
                response = self._client.request(
                    method,
                    path,
                    # As text: for a patch the client would pick its own type.
                    body=json.dumps(body) if content_type != "application/json" else body,
                    query_params=list(query),
                    content_type=content_type,
                    serialize=False,
                    _request_timeout=(CONNECT_S, self._answer_s),
                )
                found = json.loads(response.data)
            except DynamicApiError as error:
                told = _told(error, what, self.server)
                after = _retry_after(error) or wait
                if not isinstance(told, api.AwayError) or time.monotonic() + after > deadline:
                    raise told from error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                after = wait
                # A creation that got no answer may have happened; asked again it would be "there already".
                if time.monotonic() + after > lost or method == "post":
                    raise api.AwayError(
                        f"{self.server} did not answer a request to {what}: {type(error).__name__}: {error}. Is this the "
                        "right context, and the VPN up? Nothing says that it was not done: look with tiltyard cluster status"
                    ) from error
            except ValueError as error:
                raise ClusterError(f"{self.server} did not answer as a Kubernetes API does to {what}.") from error
            else:
                if not isinstance(found, dict):
                    raise ClusterError(f"{self.server} did not answer as a Kubernetes API does to {what}.")
                return found
            self._pause(after)
            wait = min(2 * wait, 8.0)


def unknown_fields(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields of a built-in kind that the installed client's Kubernetes does not know; empty for kinds of others."""
    version = str(manifest["apiVersion"]).rpartition("/")[2].capitalize()
    model = getattr(client, f"{version}{manifest['kind']}", None)
    return [] if model is None else list(_unknown(dict(manifest), model, ""))


_GENERIC = re.compile(r"(list\[|dict\[str, |dict\(str, )(.*)[\])]", re.IGNORECASE)
"""``List[V1Pod]`` and ``Dict[str, V1Pod]``, as the generated client writes its types."""


def _unknown(value: Any, kind: Any, at: str) -> Iterator[tuple[str, str]]:
    """Walks a value beside the type that the generated client gives it."""
    if isinstance(kind, str):
        generic = _GENERIC.fullmatch(kind)
        if generic and isinstance(value, list):
            for index, item in enumerate(value):
                yield from _unknown(item, generic[2], f"{at}[{index}]")
            return
        if generic and isinstance(value, dict):
            for key, item in value.items():
                yield from _unknown(item, generic[2], _below(at, key))
            return
        kind = getattr(client, kind, None)
    types, names = getattr(kind, "openapi_types", None), getattr(kind, "attribute_map", None)
    if types is None or names is None:
        return
    if not isinstance(value, dict):
        yield at, f"is {type(value).__name__}; wanted a mapping"
        return
    by_name = {names[attribute]: field for attribute, field in types.items()}
    for key, item in value.items():
        if key not in by_name:
            yield _below(at, key), f"is no field of {kind.__name__}"
        else:
            yield from _unknown(item, by_name[key], _below(at, key))


def _below(at: str, key: str) -> str:
    return f"{at}.{key}".lstrip(".")


def _namespace(context: str | None, kubeconfig: str | None) -> str:
    contexts, active = config.list_kube_config_contexts(kubeconfig)  # type: ignore[no-untyped-call]
    chosen = next((c for c in contexts if c["name"] == context), active)
    return str(chosen["context"].get("namespace") or "default")


def _folder(kind: Kind, namespace: str | None) -> str:
    root = f"/api/{kind.api}" if "/" not in kind.api else f"/apis/{kind.api}"
    inside = f"/namespaces/{namespace}" if kind.namespaced and namespace else ""
    return f"{root}{inside}/{kind.plural}"


def _path(ref: Ref) -> str:
    return f"{_folder(KINDS[ref.kind], ref.namespace)}/{ref.name}"


def _retry_after(error: DynamicApiError) -> float | None:
    found = {str(k).lower(): v for k, v in dict(error.headers or {}).items()}.get("retry-after", "")
    return float(found) if str(found).isdigit() else None


def _told(error: DynamicApiError, what: str, server: str) -> ClusterError:
    """The Status that an API server sends with an error, as one of ours."""
    try:
        status = json.loads(error.body or "")
        text, reason = str(status.get("message") or status.get("reason")), str(status.get("reason", ""))
        causes = [c for c in (status.get("details") or {}).get("causes") or [] if c.get("message")]
    except (ValueError, AttributeError, TypeError):
        text, reason, causes = str(error.reason), "", []
    more = "".join(f"\n  {c.get('field', '')}: {c['message']}" for c in causes[:10] if c["message"] not in text)
    found = f"Kubernetes ({server}) answered {error.status} to {what}: {text}{more}"
    if error.status == 401:
        return api.ForbiddenError(f"{found}. Log in anew; the kubeconfig's credentials are not taken.")
    if error.status == 403:
        return api.ForbiddenError(f"{found}. Ask who runs the cluster for that right, or choose another --context.")
    if error.status == 404:
        return api.NotThereError(f"{found}. Is KubeRay installed (kubectl get crd), and the namespace there?")
    if error.status == 409 and reason == "AlreadyExists":
        return api.ExistsError(found)
    if error.status == 409:
        return api.ConflictError(
            f"{found}. Take the fields over with --force-conflicts, or leave them out of the description."
        )
    if error.status in {400, 422}:
        return api.InvalidError(f"{found}. Mend the description; check it with tiltyard cluster validate.")
    if error.status == 429 or error.status >= 500:
        return api.AwayError(f"{found}. Asked again in vain; try later.")
    return ClusterError(found)
