"""Whether llama.cpp's graph computes what a config.json says: field by field, against the rules of `audit_tables`.

Two answers: `audit`, an error for every setting that no key can make the graph honour; and `extra_keys`, the keys that
make it honour a setting which upstream's converter leaves out. What it does not know: tensors, rope scaling (that is
`encoding`), and transformers, which is never imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from yarn_gguf.config.audit_checks import CHECKS, Model
from yarn_gguf.config.audit_keys import EXTRA, Keys
from yarn_gguf.config.audit_tables import OF_ALL, ROWS, USUAL, Check, Only, Rule
from yarn_gguf.config.fields import shown
from yarn_gguf.config.hyperparameters import Hyperparameters, class_defaults
from yarn_gguf.config.leftovers import UNCOMPUTED, says_nothing
from yarn_gguf.config.model_config import ModelConfig
from yarn_gguf.findings import Finding, error, note, warning


def audit(config: ModelConfig, hf_class: str, context: int | None = None) -> tuple[Finding, ...]:
    """Errors `not_honoured`, each naming its field; notes on fields that nobody reads, a warning if it matters.

    `context` is how many tokens the converted model is for, if not what the config says: a window above it is none.
    """
    rules = rules_of(config.model_type)
    if not rules:
        return (error("not_audited", f"nobody has compared the config of {config.model_type} with llama.cpp's graph"),)
    model = Model(config, context or config.max_position_embeddings)
    found = [problem for name, rule in rules.items() for problem in _problems(model, name, rule, hf_class)]
    return (*found, *_uncomputed(config), *_unknown(model, rules))


def rules_of(model_type: str) -> Mapping[str, Rule]:
    """field → rule, for all fields of the class and those that only converters read; empty where there is no row."""
    if model_type not in ROWS:
        return {}
    row = ROWS[model_type]
    names = dict.fromkeys((*class_defaults()[model_type], *row, *OF_ALL))
    return {name: row[name] if name in row else USUAL[name] for name in names}


def extra_keys(config: ModelConfig, hf_class: str) -> Keys:
    """Keys, without the architecture's prefix, to write beside or over those of upstream's converter.

    None for a config at which upstream's are right, so that its files stay the oracle.
    """
    model, keys = Model(config, config.max_position_embeddings), Keys()
    for make in EXTRA.get(config.model_type, ()):
        keys |= make(model)
    return keys


def _problems(model: Model, name: str, rule: Rule, hf_class: str) -> Iterator[Finding]:
    instead: str | None = None
    if isinstance(rule, Only) and model.get(name) not in rule.values:
        instead = rule.instead
    elif isinstance(rule, Check):
        instead = CHECKS[rule.name](model)
    if instead:
        source = "" if Hyperparameters(model.config).states(name) else " (not in the file: the class's default)"
        text = f"{name} is {shown(model.get(name))}{source}, but llama.cpp's graph for {hf_class} {instead}"
        yield error("not_honoured", text)


def _uncomputed(config: ModelConfig) -> Iterator[Finding]:
    for name, what in UNCOMPUTED.items():
        if config.raw.get(name):
            text = (
                f"{name} asks for {what}, which neither transformers' class for {config.model_type} nor llama.cpp has"
            )
            yield warning("not_computed", f"{text}: beyond the length of training, both differ from what was published")


def _unknown(model: Model, rules: Mapping[str, Rule]) -> Iterator[Finding]:
    """A field that transformers' class has not is without effect there, and so it is here."""
    config = model.config
    known = rules.keys() | USUAL.keys() | UNCOMPUTED.keys() | Hyperparameters(config).other_names()
    strange = [name for name in config.raw.keys() - known if not name.startswith("_")]
    if strange := sorted(name for name in strange if not says_nothing(model, name)):
        text = f"{', '.join(strange)}: transformers' class for {config.model_type} reads no such field; left out"
        yield note("unknown_field", text)
