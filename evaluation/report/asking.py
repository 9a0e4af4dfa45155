"""How predictions were made, in sentences for the head of the report."""

from collections.abc import Mapping
from typing import Any

_CONSTRAINED = {
    "never": "No answer was constrained.",
    "failures": "An image whose free answer had no graph was asked about again under the "
    "grammar of an answer.",
    "all": "After its free answer each image was asked about again under the grammar of an answer.",
}


def asked_in_words(settings: Mapping[str, Any]) -> str:
    """Sampling, constraint, version and servers.

    Example: `The model answered greedily, with at most 96 tokens. No answer was constrained.
    Version 40 answered, on 2 servers.`

    Args:
        settings: As they stand beside predictions. What they do not say is left out, as is what
            somebody else has put there.
    """
    sentences = [_sampling(settings), _CONSTRAINED.get(str(settings.get("constrain")), "")]
    version, servers = settings.get("policy_version"), settings.get("servers")
    if version is not None:
        number = f", on {_counted(servers)}" if isinstance(servers, list) else ""
        several = "s" * (" to " in str(version))
        sentences.append(f"Version{several} {version} answered{number}.")
    return " ".join(filter(None, sentences))


def _sampling(settings: Mapping[str, Any]) -> str:
    temperature = _number(settings, "temperature")
    if temperature is None:
        return ""
    cuts = [f"temperature {temperature:g}"]
    if (top_p := _number(settings, "top_p") or 1) < 1:
        cuts.append(f"top-p {top_p:g}")
    if top_k := _number(settings, "top_k"):
        cuts.append(f"top-k {top_k:g}")
    if best_of := _number(settings, "best_of"):
        cuts.append(f"the likeliest of {best_of:g} answers")
    if consensus := _number(settings, "consensus"):
        cuts.append(f"what half of {consensus:g} answers agree on")
    how = f"by sampling ({', '.join(cuts)})" if temperature else "greedily"
    longest = _number(settings, "max_tokens")
    return f"The model answered {how}{f', with at most {longest:,} tokens' if longest else ''}."


def _number(settings: Mapping[str, Any], name: str) -> float | None:
    value = settings.get(name)
    return value if isinstance(value, int | float) else None


def _counted(servers: list[Any]) -> str:
    return "1 server" if len(servers) == 1 else f"{len(servers)} servers"
