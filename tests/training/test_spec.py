"""The training file: defaults, every kind of bad input, and fields that must agree."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from checkpoint.writer import config_json
from model.config import MixtralConfig, read_config
from model.config_fields import MAX_INTEGER
from spec.section import Section, section_in
from training.cursor import MAX_SEED
from training.optimizer import make_optimizer
from training.progress import MAX_STEPS, checkpoint_name, is_checkpoint_name
from training.spec import (
    ConfigSpec,
    Replicas,
    SourceSpec,
    SpecError,
    TrainingSpec,
    check_experts,
    load_training,
    training_from_dict,
)
from training.spec_fields import MIN_EPS
from training.spec_reference import HEAD, TARGET, reference
from training.spec_schema import OptimizerSpec

SHAPE = {"hidden_size": 64, "ffn_size": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}


def smallest() -> dict[str, Any]:
    """What must be given to train a checkpoint."""
    return {
        "storage": "runs",
        "model": {"path": "mixtral"},
        "data": {"sources": [{"path": "corpus"}]},
        "schedule": {"steps": 1000, "batch": 32},
    }


def new_model(**shape: Any) -> dict[str, Any]:
    """What must be given to train a new model."""
    return {**smallest(), "model": {"config": {**SHAPE, **shape}, "tokenizer": "tokenizer"}}


def problems(data: object, **overrides: object) -> dict[str, str]:
    """The words about each field that is wrong; a `__` in a name stands for a dot."""
    with pytest.raises(SpecError) as caught:
        training_from_dict(data, {name.replace("__", "."): value for name, value in overrides.items()})
    return {problem.field: problem.text for problem in caught.value.problems}


def test_every_field_has_its_documented_default() -> None:
    spec = training_from_dict(smallest())
    assert (spec.name, spec.storage) == ("run", "runs")
    assert (spec.model.config, spec.model.tokenizer, spec.model.dtype) == (None, None, "float32")
    assert (spec.data.held_out, spec.data.sequence_length, spec.data.separate_documents) == (0, 256, True)
    assert spec.data.sources == (SourceSpec(path="corpus", format="auto", column="text", task=None, task_column=None),)
    assert (spec.parallel.workers, spec.parallel.expert_parallel) == (Replicas(min=1, max=1), 1)
    assert (spec.parallel.num_gpus, spec.parallel.num_cpus, spec.parallel.capacity_factor) == (0, "auto", 1.25)
    assert (spec.optimizer.name, spec.optimizer.peak_lr, spec.optimizer.clip_norm) == ("adamw", 1e-3, 1.0)
    assert (spec.schedule.evaluate_every, spec.schedule.evaluate_batches) == (None, 8)
    assert (spec.losses.balance, spec.losses.balance_scope, spec.losses.jitter) == (0.01, "batch", 0)
    assert (spec.checkpoints.every, spec.checkpoints.keep, spec.limits.max_failures) == (100, 2, 3)


def test_a_new_model_has_its_documented_defaults() -> None:
    config = training_from_dict(new_model()).model.config
    assert config == ConfigSpec(**SHAPE)
    assert (config.num_experts, config.top_k, config.head_dim, config.window) == (8, 2, None, None)
    assert (config.max_context, config.rope_theta, config.norm_eps, config.tie_embeddings) == (4096, 1e4, 1e-5, False)


def documented(section: type[Section], path: str = "") -> Iterator[tuple[str, bool]]:
    """Each field at any depth, and whether it or its section has a description."""
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        yield f"{path}{name}", bool(field.description or (inner and inner.__doc__))
        if inner is not None:
            yield from documented(inner, f"{path}{name}.")


def test_every_field_is_documented() -> None:
    fields = dict(documented(TrainingSpec))
    assert {"model.config.top_k", "data.sources.task", "limits.save_timeout_s"} < fields.keys()
    assert [name for name, has_words in fields.items() if not has_words] == []


def test_the_specification_survives_a_trip_through_plain_data() -> None:
    data = new_model(head_dim=8) | {"parallel": {"workers": {"min": 2, "max": 4}, "expert_parallel": 2}}
    spec = training_from_dict(data)
    assert training_from_dict(spec.model_dump(mode="json")) == spec
    assert training_from_dict(yaml.safe_load(yaml.safe_dump(spec.model_dump()))) == spec


def test_workers_are_a_number_or_a_range() -> None:
    assert training_from_dict(smallest(), {"parallel.workers": 4}).parallel.workers == Replicas(min=4, max=4)
    overrides = {"parallel.workers.min": 2, "parallel.workers.max": 8}
    assert training_from_dict(smallest(), overrides).parallel.workers == Replicas(min=2, max=8)


def test_a_range_of_workers_need_not_be_multiples_of_expert_parallel() -> None:
    parallel = {"workers": {"min": 1, "max": 5}, "expert_parallel": 4}
    assert training_from_dict(smallest(), {"parallel": parallel}).parallel.expert_parallel == 4


def test_the_tokenizer_is_the_checkpoint_s_unless_another_is_named() -> None:
    assert training_from_dict(smallest()).model.tokenizer_directory == Path("mixtral")
    assert training_from_dict(smallest(), {"model.tokenizer": "other"}).model.tokenizer_directory == Path("other")
    assert training_from_dict(new_model()).model.tokenizer_directory == Path("tokenizer")


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "1.E-3", "0.001", ".1e-2"])
def test_learning_rates_may_be_written_with_an_exponent(tmp_path: Path, written: str) -> None:
    path = tmp_path / "training.yaml"
    path.write_text(f"{yaml.safe_dump(smallest())}optimizer: {{peak_lr: {written}}}\n")
    assert load_training(path).optimizer.peak_lr == 0.001


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(new_model()) + "losses:\n")
    spec = load_training(path, {"data.sources": [{"path": "a/*.txt"}, {"path": str(tmp_path / "b")}], "name": "again"})
    assert spec.name == "again"
    assert spec.storage == str(tmp_path / "runs")
    assert spec.model.tokenizer_directory == tmp_path / "tokenizer"
    assert [source.path for source in spec.data.sources] == [str(tmp_path / "a/*.txt"), str(tmp_path / "b")]


def test_the_example_on_the_page_is_a_run(tmp_path: Path) -> None:
    path = tmp_path / "training.yaml"
    path.write_text(HEAD.split("```yaml\n")[1].split("```")[0])
    assert load_training(path).model.path == str(tmp_path / "mixtral")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("nam", "x", "is not a field; did you mean name?"),
        ("name", "My Run", "'My Run' was given; allowed: at most 63 of a-z"),
        ("storage", None, "null was given; allowed: a path (mount what has a URL)."),
        ("storage", "s3://bucket/runs", "'s3://bucket/runs' was given; allowed: a path (mount what has a URL)."),
        ("storage", " ", "' ' was given; allowed: a path"),
        ("model.pth", "x", "is not a field; did you mean path?"),
        ("model.config", 8, "8 was given; allowed: a section with some of the fields hidden_size, ffn_size"),
        ("model.config", {"hidden_size": 8}, "is missing, and has no default. Width of an expert's hidden columns."),
        ("model.dtype", "float16", "allowed: float32 | bfloat16 | float64. Did you mean bfloat16?"),
        ("model.routing", "sentense", "Did you mean sentence? Leave it out for the default (token)."),
        ("model.seed", -1, "-1 was given; allowed: a whole number from 0 to 18446744073709551615."),
        ("data.sources", [], "[] was given; allowed: a list of at least one section."),
        ("data.sources", "corpus", "'corpus' was given; allowed: a list of at least one section."),
        ("data.held_out", 0.6, "0.6 was given; allowed: a number from 0 to 0.5. Leave it out for the default (0)."),
        ("data.sequence_length", "256", "Write it without quotes."),
        ("data.separate_documents", "yes", "'yes' was given; allowed: true | false."),
        ("parallel.workers", 0, "allowed: a whole number from 1 to 4096, or {min: …, max: …} with min at most max."),
        ("parallel.workers", {"min": 4, "max": 2}, "min at most max"),
        ("parallel.num_gpus", 1.5, "a fraction of one GPU"),
        ("parallel.num_gpus", 2, "no process computes on more than one"),
        ("parallel.dispatch", "droples", "Did you mean dropless?"),
        ("parallel.capacity_factor", 0, "0 was given; allowed: a number above 0."),
        ("optimizer.lr", 1, "is not a field; did you mean peak_lr?"),
        ("optimizer.peak_lr", "fast", "'fast' was given; allowed: a number above 0."),
        ("optimizer.final_lr", "-1e-3", "-0.001 was given; allowed: a number of at least 0."),
        ("optimizer.beta2", 1, "1 was given; allowed: a number of at least 0 and below 1."),
        ("optimizer.clip_norm", 0, "allowed: null or a number above 0. Leave it out for the default (1.0)."),
        ("optimizer.peak_lr", float("nan"), "nan was given; allowed: a number above 0."),
        ("schedule.steps", 1.5, "1.5 was given; allowed: a whole number from 1 to 99999999."),
        ("schedule.evaluate_every", 0, "0 was given; allowed: null or a whole number from 1 to 2147483647."),
        ("losses.balance", True, "true was given; allowed: a number of at least 0."),
        ("losses.balance_scope", "world", "allowed: batch | rank."),
        ("losses.jitter", 0.51, "a number from 0 to 0.5"),
        ("checkpoints.keep", 0, "a whole number from 1 to"),
        ("limits.save_timeout_s", 0, "a number of seconds above 0"),
        ("limits.save_timeout_s", 1e9, "a number of seconds above 0, at most 100000000"),
        ("model.seed", MAX_SEED + 1, "a whole number from 0 to"),
        ("optimizer.eps", 1e-31, "a number of at least 1e-30"),
        ("schedule.steps", MAX_STEPS + 1, "a whole number from 1 to 99999999"),
    ],
)
def test_bad_input_names_the_field_and_the_remedy(field: str, value: object, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        training_from_dict(smallest(), {field: value})
    assert expected in caught.value.problems[0].text
    assert caught.value.problems[0].field.startswith(field)


SIZES = ("hidden_size", "ffn_size", "num_heads", "num_kv_heads", "head_dim", "window", "max_context")
COUNTS = ("num_layers", "num_experts", "top_k")


def test_the_largest_model_could_be_served(tmp_path: Path) -> None:
    """What is trained is exported: a config.json that would be refused there is refused here."""
    most = dict.fromkeys(SIZES, MAX_INTEGER - 1) | dict.fromkeys(COUNTS, 4096)  # a head's width is even
    spec = training_from_dict(new_model(**most)).model.config
    assert spec is not None
    fields = {name: getattr(spec, name) for name in ConfigSpec.model_fields}
    config = MixtralConfig(**fields, vocab_size=300, bos_token_id=0, eos_token_ids=(1,), dtype="float32")
    (tmp_path / "config.json").write_text(json.dumps(config_json(config, "float32")))
    assert read_config(tmp_path) == config
    for name in (*SIZES, *COUNTS):
        more = most | {name: (MAX_INTEGER if name in SIZES else 4096) + 1}
        assert f"model.config.{name}" in problems(new_model(**more))


def test_the_last_step_has_a_checkpoint_that_is_found() -> None:
    assert is_checkpoint_name(checkpoint_name(MAX_STEPS))
    assert not is_checkpoint_name(checkpoint_name(MAX_STEPS + 1))


def test_the_least_eps_leaves_weights_without_a_gradient_as_they_are() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    make_optimizer([weight], OptimizerSpec(eps=MIN_EPS, weight_decay=0)).step()
    assert torch.equal(weight.detach(), torch.ones(4, 4))


def test_sources_are_named_by_their_number() -> None:
    found = problems(smallest(), data__sources=[{"path": "a"}, {"path": "b", "format": "json"}, {"colum": "c"}])
    assert found["data.sources.1.format"].endswith("Did you mean jsonl? Leave it out for the default (auto).")
    assert found["data.sources.2.path"].startswith("is missing, and has no default. A file, a folder")
    assert found["data.sources.2.colum"].startswith("is not a field; did you mean column?")
    assert len(found) == 3


def test_everything_that_must_be_given_is_asked_for_at_once() -> None:
    assert set(problems({})) == {"storage", "model", "data", "schedule"}
    assert problems({"storage": "x", "model": {}, "data": {}, "schedule": {}}).keys() == {
        "data.sources",
        "schedule.steps",
        "schedule.batch",
    }


@pytest.mark.parametrize(
    ("data", "overrides", "field", "expected"),
    [
        (smallest(), {"model": {"tokenizer": "t"}}, "model", "neither path nor config was given. Set path"),
        (smallest(), {"model": {"path": "m", "config": SHAPE}}, "model", "both path and config were given. Keep path"),
        (smallest(), {"model": {"config": SHAPE}}, "model.tokenizer", "a directory with tokenizer.json"),
        (new_model(top_k=9), {}, "model.config.top_k", "9 was given, more than model.config.num_experts (8)."),
        (new_model(num_kv_heads=3), {}, "model.config.num_kv_heads", "Allowed: 1, 2 or 4."),
        (new_model(hidden_size=66), {}, "model.config.hidden_size", "no multiple of model.config.num_heads (4)."),
        (new_model(hidden_size=60), {}, "model.config.head_dim", "hidden_size / num_heads gives 15; rotary"),
        (new_model(head_dim=7), {}, "model.config.head_dim", "7 was given; rotary embedding turns pairs"),
        (new_model(max_context=128), {}, "data.sequence_length", "is 256, more than model.config.max_context (128)."),
        (
            new_model(num_experts=6),
            {"parallel": {"workers": 4, "expert_parallel": 4}},
            "parallel.expert_parallel",
            "4 was given, which does not divide the model's 6 experts. Allowed: 1, 2, 3 or 6.",
        ),
        (
            smallest(),
            {"parallel": {"workers": 6, "expert_parallel": 4}},
            "parallel.workers",
            "Use 8 workers, or an expert_parallel of 1, 2, 3 or 6.",
        ),
        (
            smallest(),
            {"parallel": {"workers": {"min": 1, "max": 3}, "expert_parallel": 4}},
            "parallel.workers",
            "at most 3 were given, fewer than parallel.expert_parallel (4)",
        ),
        (smallest(), {"parallel.workers": 33}, "schedule.batch", "32 was given, fewer than the workers there may be"),
        (
            smallest(),
            {"parallel": {"workers": {"min": 1, "max": 2}, "num_gpus": 0.5}},
            "parallel.num_gpus",
            "0.5 was given, and there may be 2 workers: NCCL, over which GPUs exchange rows, refuses two workers",
        ),
        (smallest(), {"parallel.num_cpus": 0}, "parallel.num_cpus", "0 was given, and num_gpus is 0 too"),
        (smallest(), {"schedule.steps": 100}, "optimizer.warmup_steps", "is 100, and must be less than schedule.steps"),
        (smallest(), {"optimizer.peak_lr": 5e-5}, "optimizer.final_lr", "is 0.0001, more than optimizer.peak_lr"),
        (smallest(), {"schedule.evaluate_every": 10}, "schedule.evaluate_every", "Set data.held_out to a share"),
    ],
)
def test_fields_must_agree(data: dict[str, Any], overrides: dict[str, object], field: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        training_from_dict(data, overrides)
    [problem] = caught.value.problems
    assert problem.field == field
    assert expected in problem.text


@pytest.mark.parametrize(
    ("routing", "source", "field", "expected"),
    [
        ("task", {}, "data.sources.1", "has neither task nor task_column, and model.routing is task."),
        ("task", {"task": "a", "task_column": "b"}, "data.sources.1", "has both task and task_column."),
        ("task", {"task_column": "b", "format": "text"}, "data.sources.1.task_column", "text files have no columns"),
        ("token", {"task": "a"}, "data.sources.1.task", "'a' was given, and model.routing is token, which has no"),
        ("sentence", {"task_column": "b"}, "data.sources.1.task_column", "or set model.routing to task."),
    ],
)
def test_tasks_belong_to_task_routing(routing: str, source: dict[str, str], field: str, expected: str) -> None:
    first = {"path": "a", "task": "sums"} if routing == "task" else {"path": "a"}
    found = problems(smallest(), model__routing=routing, data__sources=[first, {"path": "b", **source}])
    assert list(found) == [field]
    assert expected in found[field]


def test_task_routing_takes_a_task_or_its_column() -> None:
    sources = [{"path": "a", "task": "sums"}, {"path": "b.jsonl", "task_column": "kind"}]
    spec = training_from_dict(smallest(), {"model.routing": "task", "data.sources": sources})
    assert [(source.task, source.task_column) for source in spec.data.sources] == [("sums", None), (None, "kind")]


def test_all_that_does_not_agree_is_reported_at_once() -> None:
    found = problems(new_model(top_k=9, head_dim=7), model__tokenizer=None, schedule__steps=1, parallel__workers=64)
    assert set(found) == {
        "model.tokenizer",
        "model.config.top_k",
        "model.config.head_dim",
        "schedule.batch",
        "optimizer.warmup_steps",
    }


def test_a_checkpoint_s_experts_are_checked_once_they_are_known() -> None:
    spec = training_from_dict(smallest(), {"parallel": {"workers": 4, "expert_parallel": 4}})
    check_experts(spec, 8)
    with pytest.raises(SpecError, match="does not divide the model's 6 experts"):
        check_experts(spec, 6)


def test_a_part_of_a_gpu_is_enough_for_a_single_worker() -> None:
    assert training_from_dict(smallest(), {"parallel.num_gpus": 0.5}).parallel.num_gpus == 0.5


def test_several_problems_without_a_file_are_the_training_run_s() -> None:
    with pytest.raises(SpecError, match="^the training run: 4 problems\n"):
        training_from_dict({})


def test_an_empty_file_is_told_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "training.yaml").write_text("")
    with pytest.raises(SpecError, match="is empty; allowed: sections and fields, at least storage, model"):
        load_training(tmp_path / "training.yaml")


def test_the_reference_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == reference(), "run `make docs`"
