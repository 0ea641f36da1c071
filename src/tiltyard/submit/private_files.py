"""Does a file look like a secret? By its name first, then by what stands in it.

Names that programs use for keys and credentials, and the fixed beginnings that issuers gave their tokens so that tools can
find them. A guess in both directions: a password in a file called ``notes.txt`` is not seen. Never tells what it found,
only what kind.
"""

from __future__ import annotations

import fnmatch
import re

_NAMES = {
    "a file of environment variables": (".env", ".env.*", "*.env", ".envrc"),
    "a private key": ("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "id_rsa", "id_dsa", "id_ecdsa",
                      "id_ed25519", "*.ppk", "*.kdbx"),
    "credentials": (".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".htpasswd", ".git-credentials", "credentials",
                    "credentials.json", "kubeconfig", "*.kubeconfig", "service-account*.json", "client_secret*.json"),
    "a token": ("token", "*.token", "auth_token", "*-token", "*_token", "serving-tokens.json"),
}  # fmt: skip
_HARMLESS = (".env.example", ".env.sample", ".env.template")
_FOLDERS = frozenset({".aws", ".ssh", ".kube", ".gnupg", ".docker", ".azure", ".gcloud"})
_TEXTS: dict[str, re.Pattern[bytes]] = {
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s*\n?[A-Za-z0-9+/=\s:,-]{32}"),
    "an AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})"),
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{34}\b"),
    "a Slack token": re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
    "a Google API key": re.compile(rb"\bAIza[0-9A-Za-z_-]{35}\b"),
    "a GitLab token": re.compile(rb"\bglpat-[A-Za-z0-9_-]{20,}"),
}
_LOOKED_AT_BYTES = 1 << 20
"""Of a larger file only the beginning is read for texts: keys stand in small files."""


def private_because(name: str, data: bytes) -> str | None:
    """Why a file looks like a secret; None where it does not.

    >>> private_because("conf/.env", b"A=1")
    'a file of environment variables'
    """
    *folders, last = name.lower().split("/")
    if _FOLDERS & set(folders):
        return f"it lies in {next(f for f in folders if f in _FOLDERS)}"
    if last not in _HARMLESS:
        for kind, patterns in _NAMES.items():
            if any(fnmatch.fnmatchcase(last, pattern) for pattern in patterns):
                if kind == "a private key" and last.endswith(".pem") and b"PRIVATE KEY" not in data:
                    continue  # a certificate alone is public
                return kind
    head = data[:_LOOKED_AT_BYTES]
    return next((f"{kind} stands in it" for kind, text in _TEXTS.items() if text.search(head)), None)
