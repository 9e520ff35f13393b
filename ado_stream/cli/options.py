"""Options of a policy as the command line gives them: K=V words to typed values."""

from typing import Any

from ado_stream.errors import ConfigError


def plain_options(words: list[str]) -> dict[str, Any]:
    """{key: value} of ["tau=3", "weights={web: 1, code: 2}", "fit.every=5"]; values as YAML. Raises ConfigError."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    for word in words:
        if not word.partition("=")[1] or word.startswith("="):
            raise ConfigError(f"--option {word!r}: expected KEY=VALUE, for example --option start_step=500.")
    try:
        options = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    except YAMLError as error:
        raise ConfigError(f"--option {words}: not KEY=VALUE in YAML ({' '.join(str(error).split())}).") from None
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}
