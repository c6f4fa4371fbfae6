"""Which environment variables a grading process gets: those that programs run by, and no secrets."""

from __future__ import annotations

from collections.abc import Collection, Mapping

HARMLESS = """
    PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TERM TMPDIR TMP TEMP HOSTNAME VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH LD_PRELOAD
    HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NLTK_DATA
"""
BEGINNINGS = """
    LC_ XDG_ PYTHON RLFT_ OMP_ KMP_ MKL_ OPENBLAS_ NUMEXPR_ MALLOC_ CUDA_ NVIDIA_ HIP_ ROCR_ TORCH PYTORCH_ TRITON_ HF_ TRANSFORMERS_
    TOKENIZERS_ SYMPY_ MPMATH_
"""
SECRETS = "TOKEN TOKENS KEY KEYS SECRET SECRETS PASSWORD PASSWD PASS AUTH CREDENTIAL CREDENTIALS COOKIE"
_NAMES, _PREFIXES, _SECRET = frozenset(HARMLESS.split()), tuple(BEGINNINGS.split()), frozenset(SECRETS.split())


def passed_on(environment: Mapping[str, str], named: Collection[str] = ()) -> dict[str, str]:
    """What a grading process gets of an environment.

    Args:
        named: variables that it gets as well, whatever they are called.
    """
    return {name: value for name, value in environment.items() if name in named or is_harmless(name)}


def is_harmless(name: str) -> bool:
    """Whether a variable is one of those that programs run by, and not called like a secret, as HF_TOKEN is."""
    known = name.upper() in _NAMES or name.startswith(_PREFIXES)  # proxies stand in small letters too
    return known and not _SECRET & set(name.upper().split("_"))
