"""The service file: defaults, every kind of bad input, and the shards it asks for."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.spec import (
    Replicas,
    ServiceSpec,
    ShardPlan,
    SpecError,
    cpu_default_shards,
    load_spec,
    shards,
    spec_for_model,
    spec_from_dict,
)
from cluster.spec_reference import TARGET, reference
from cluster.spec_shards import expert_groups


def make_spec(**experts: Any) -> ServiceSpec:
    return spec_from_dict({"model": {"path": "demo"}, "experts": experts})


def refusal(section: str | None, value: object) -> str:
    """The error for a service whose `section` holds `value`."""
    data = {"model": {"path": "demo"}, **({section: value} if section else {})}
    with pytest.raises(SpecError) as caught:
        spec_from_dict(data)
    return str(caught.value)


def test_every_field_but_the_model_has_a_default() -> None:
    spec = spec_from_dict({"model": {"path": "demo"}})
    assert (spec.api.host, spec.api.port, spec.attention.max_queued) == ("127.0.0.1", 8000, 256)
    assert (spec.model.window, spec.experts.per_actor, spec.experts.slices) == ("auto", "auto", "auto")
    assert spec.model.served_name == "demo"
    assert spec.model.directory.parts[-2:] == ("manta", "demo")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/mixtral", "mixtral"),
        ("models/mixtral/", "mixtral"),
        ("hub/models--mistralai--Mixtral-8x7B-v0.1/snapshots/985aa05", "mistralai/Mixtral-8x7B-v0.1"),
        ("hub/models--gpt2/snapshots/985aa05", "gpt2"),
        ("snapshots/985aa05", "985aa05"),
        ("/", "model"),
    ],
)
def test_a_model_is_called_as_it_was_given(tmp_path: Path, path: str, name: str) -> None:
    assert spec_from_dict({"model": {"path": path}}, base=tmp_path).model.served_name == name


def test_a_link_gives_the_model_its_own_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--me--mine" / "snapshots" / "985aa05"
    snapshot.mkdir(parents=True)
    (tmp_path / "chat").symlink_to(snapshot)
    assert spec_from_dict({"model": {"path": str(tmp_path / "chat")}}).model.served_name == "chat"


def test_the_current_folder_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "mixtral").mkdir()
    assert spec_from_dict({"model": {"path": "."}}, base=tmp_path / "mixtral").model.served_name == "mixtral"


def test_the_specification_survives_a_trip_through_plain_data() -> None:
    spec = make_spec(replicas=2, overrides={3: {"replicas": 4}}, labels={"zone": "a"}, num_gpus=0.5)
    assert spec_from_dict(spec.model_dump(mode="json")) == spec
    assert spec_from_dict(yaml.safe_load(yaml.safe_dump(spec.model_dump()))) == spec


def test_replicas_are_a_number_or_a_range() -> None:
    assert make_spec(replicas=3).experts.replicas == make_spec(replicas={"min": 3, "max": 3}).experts.replicas
    assert make_spec(replicas=3).experts.replicas.num == 3
    assert make_spec(replicas={"min": 2, "max": 5}).experts.replicas == Replicas(min=2, max=5)
    assert make_spec(replicas={"min": 2, "max": 5}).experts.replicas.num == 2


@pytest.mark.parametrize("field", ["attention.replicas", "router.replicas", "experts.replicas"])
def test_a_range_may_be_given_by_its_ends(field: str) -> None:
    section = field.split(".")[0]
    spec = spec_for_model("demo", {f"{field}.min": 1, f"{field}.max": 3})
    assert getattr(spec, section).replicas == Replicas(min=1, max=3)


def test_gateways_have_a_plain_number() -> None:
    assert spec_for_model("demo", {"api.replicas": 3}).api.replicas.num == 3
    text = refusal("api", {"replicas": {"min": 1, "max": 2}})
    assert text.startswith(
        "api.replicas: {'min': 1, 'max': 2} was given; allowed: a whole number from 1 to 4096, and no"
    )


def test_an_override_in_what_has_no_fields() -> None:
    data = {"model": {"path": "demo"}, "router": {"replicas": 2}}
    with pytest.raises(SpecError, match="router.replicas.max: cannot be set: router.replicas is 2"):
        spec_from_dict(data, {"router.replicas.max": 3})


def test_an_override_reaches_an_expert_whose_id_is_a_number() -> None:
    data = {"model": {"path": "demo"}, "experts": {"overrides": {3: {"num_gpus": 1}}}}
    override = spec_from_dict(data, {"experts.overrides.3.replicas": 2}).experts.overrides[3]
    assert (override.num_gpus, override.replicas) == (1, Replicas(min=2, max=2))


def test_override_keys_may_be_text_as_json_gives_them() -> None:
    spec = make_spec(overrides={"3": {"replicas": 2}}, per_actor=1)
    assert [plan.num_replicas for plan in shards(spec, 8, 2)] == [1, 1, 1, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("window", ["auto", None, 1, 4096])
def test_windows_that_are_allowed(window: int | str | None) -> None:
    assert spec_for_model("demo", {"model.window": window}).model.window == window


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("api", {"prot": 1}, "api.prot: is not a field; did you mean port?"),
        ("apis", {}, "apis: is not a field; did you mean api?"),
        ("api", {"port": 0}, "api.port: 0 was given; allowed: a whole number from 1 to 65535."),
        ("api", {"port": "8000"}, "Write it without quotes."),
        ("api", {"port": True}, "api.port: true was given"),
        ("api", {"route_prefix": "v1"}, "api.route_prefix: 'v1' was given; allowed: / or a path"),
        ("api", {"host": "0.0.0.0"}, "api.keys_file is not set"),
        ("api", {"cors_origins": "https://a.example"}, "allowed: a list of origins such as https://chat.example"),
        ("api", {"cors_origins": ["https://a.example/"]}, "api.cors_origins: ['https://a.example/'] was given"),
        ("api", {"cors_origins": ["https://*.example"]}, "api.cors_origins: ['https://*.example'] was given"),
        ("api", {"cors_origins": ["https://A.example"]}, "api.cors_origins: ['https://A.example'] was given"),
        ("api", {"cors_origins": ["https://a.example:443"]}, "no port that is the default"),
        ("api", {"allowed_hosts": ["llm.example:8000"]}, "allowed: a list of host names, without ports"),
        ("api", {"allowed_hosts": ["[fd00::1]"]}, "api.allowed_hosts: ['[fd00::1]'] was given"),
        ("api", {"allowed_hosts": ["*"]}, "api.allowed_hosts: ['*'] was given"),
        ("limits", {"request": {"max_unread_bytes": 1 << 20}}, "allowed: a whole number from 2097152 to"),
        ("api", [], "api: [] was given; allowed: a section with some of the fields host, port"),
        ("model", {"dtype": "bfloat61", "path": "x"}, "Did you mean bfloat16?"),
        ("model", {"path": ""}, "model.path: '' was given"),
        ("model", {}, "model.path: is missing"),
        ("model", {"path": "x", "window": 0}, "auto, null (full attention) or a whole number from 1 to"),
        ("model", {"path": "x", "window": "big"}, "model.window: 'big' was given"),
        ("name", "Über Dienst", "name: 'Über Dienst' was given"),
        ("attention", {"replicas": 0}, "attention.replicas: 0 was given; allowed: a whole number from 1 to 4096"),
        ("attention", {"replicas": {"min": 2, "max": 1}}, "min at most max"),
        ("attention", {"replicas": {"min": 2}}, "attention.replicas.max: is missing"),
        ("attention", {"max_sequences": 64, "max_batch_tokens": 32}, "more than attention.max_batch_tokens (32)"),
        ("attention", {"num_gpus": 1.5}, "a fraction of one GPU"),
        ("attention", {"num_gpus": 2}, "attention.num_gpus: 2 was given; allowed: 0, a fraction of one GPU, or 1: no"),
        ("attention", {"labels": {"zone": 1}}, "attention.labels: {'zone': 1} was given"),
        ("experts", {"num_gpus": 8}, "no process computes on more than one"),
        ("attention", {"num_cpus": -1}, "attention.num_cpus: -1 was given"),
        ("experts", {"overrides": {"first": {"replicas": 2}}}, "allowed: an expert id"),
        ("experts", {"overrides": {3: {"replica": 2}}}, "experts.overrides.3.replica: is not a field; did you mean"),
        ("experts", {"overrides": {3: 2}}, "experts.overrides.3: 2 was given; allowed: a section with some of the"),
        ("experts", {"overrides": {3: {"replicas": {"mim": 1}}}}, "3.replicas.mim: is not a field; did you mean min?"),
        ("experts", {"overrides": {3: {"num_gpus": 1.5}}}, "experts.overrides.3.num_gpus: 1.5 was given; allowed: 0"),
        ("experts", {"Num-GPUs": 1}, "experts.Num-GPUs: is not a field; did you mean num_gpus?"),
        ("experts", {3: {"replicas": 2}}, "experts.3: is not a field; Fields here: per_actor,"),
        ("attention", {"replicas": {"max": 2, "mn": 1}}, "attention.replicas.mn: is not a field; did you mean min?"),
        ("router", {"replicas": {"min": 0, "max": 2}}, "router.replicas.min: 0 was given; allowed: a whole number"),
        ("autoscaling", {"target": 0.5}, "autoscaling.target: is not a field; did you mean target_utilization?"),
        ("autoscaling", {"target_utilization": 70}, "target_utilization: 70 was given; allowed: a number above 0"),
        ("experts", {"overrides": [3]}, "experts.overrides: [3] was given; allowed: a mapping."),
        ("experts", {"labels": {"zone": 1}}, "experts.labels: {'zone': 1} was given"),
        ("experts", {"placement": "sprad"}, "Did you mean spread?"),
        ("experts", {"on_missing": "degrad"}, "Did you mean degrade?"),
        ("limits", {"load_timeout_s": 0}, "a number of seconds above 0"),
        ("limits", {"load_timeout_s": float("inf")}, "a number of seconds above 0"),
        ("limits", {"load_timeout_s": 1e9}, "a number of seconds above 0, at most 100000000"),
    ],
)
def test_bad_input_names_the_field_and_the_remedy(section: str, value: object, expected: str) -> None:
    assert expected in refusal(section, value)


@pytest.mark.parametrize(
    ("section", "value", "field"),
    [
        ("api", {"grpc_port": 9000}, "api.grpc_port"),
        ("experts", {"quantization": "int8"}, "experts.quantization"),
    ],
)
def test_what_is_not_honoured_is_refused(section: str, value: object, field: str) -> None:
    text = refusal(section, value)
    assert text.startswith(f"{field}: ")
    assert "not honoured yet" in text


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_dict({"api": {"port": 0, "prot": 1}}, source="service.yaml")
    assert {problem.field for problem in caught.value.problems} == {"model", "api.port", "api.prot"}
    assert str(caught.value).startswith("service.yaml: 3 problems\n")


def test_the_error_survives_the_trip_between_processes() -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_dict({"api": {"port": 0}}, source="service.yaml")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes


def test_a_public_address_is_allowed_with_keys() -> None:
    spec = spec_from_dict({"model": {"path": "demo"}, "api": {"host": "0.0.0.0", "keys_file": "keys.txt"}})
    assert spec.api.keys_file == "keys.txt"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_need_no_keys(host: str) -> None:
    assert spec_for_model("demo", {"api.host": host}).api.host == host


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {path: demo\napi: {}\n", "is not valid YAML: line 2, column 4"),
        ("model: {path: demo}\napi:\n  port: 1\n  port: 2\n", "line 4, column 3: `port` is given twice"),
        ("", "is empty; allowed: sections and fields"),
        ("- model\n", "['model'] was given; allowed: sections and fields"),
        ("model: !!python/object/apply:os.getcwd []\n", "is not valid YAML: line 1"),
    ],
)
def test_files_that_are_not_a_service(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match="service.yaml") as caught:
        load_spec(path)
    assert expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="absent.yaml: cannot be read"):
        load_spec(tmp_path / "absent.yaml")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    path.write_text("model: {path: ./weights}\napi: {keys_file: keys.txt}\nlimits:\n")
    spec = load_spec(path)
    assert spec.model.directory == tmp_path / "weights"
    assert spec.api.keys_file == str(tmp_path / "keys.txt")


def test_overrides_win_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    path.write_text("model: {path: demo, dtype: float32}\napi: {port: 8001, route_prefix: /a}\n")
    spec = load_spec(path, {"api.port": 9000, "model.name": "mixtral"})
    assert (spec.api.port, spec.api.route_prefix) == (9000, "/a")
    assert (spec.model.served_name, spec.model.dtype) == ("mixtral", "float32")


def test_the_reference_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_shards_on_gpus_are_whole_single_experts() -> None:
    assert shards(make_spec(num_gpus=1), 3, 64) == tuple(ShardPlan(i, (i,), 0, 1, num_gpus=1) for i in range(3))


def test_shards_on_two_cores_are_two_slices_of_every_expert() -> None:
    everything = tuple(range(8))
    assert shards(make_spec(), 8, 2) == (ShardPlan(0, everything, 0, 2), ShardPlan(1, everything, 1, 2))


def test_an_override_reaches_every_slice_of_its_shard() -> None:
    plans = shards(make_spec(per_actor=4, slices=2, overrides={5: {"replicas": 3}}), 8, 2)
    assert [plan.num_replicas for plan in plans] == [1, 1, 3, 3]


def test_a_shard_has_the_resources_that_its_override_names_and_else_those_of_all() -> None:
    override = {"num_gpus": 0.5, "accelerator_type": "H200", "labels": {"zone": "b"}}
    spec = make_spec(per_actor=1, num_cpus=2, labels={"zone": "a"}, overrides={1: override, 2: {"labels": {}}})
    first, second, third = shards(spec, 3, 2)
    assert first == ShardPlan(0, (0,), 0, 1, num_cpus=2, labels={"zone": "a"})
    assert second == ShardPlan(1, (1,), 0, 1, num_gpus=0.5, num_cpus=2, accelerator_type="H200", labels={"zone": "b"})
    assert third == ShardPlan(2, (2,), 0, 1, num_cpus=2)
    assert (first.device, second.device) == ("cpu", "cuda")


def test_shards_have_their_range_of_replicas() -> None:
    spec = make_spec(per_actor=1, replicas={"min": 1, "max": 3}, overrides={1: {"replicas": {"min": 2, "max": 8}}})
    assert [plan.replicas for plan in shards(spec, 2, 2)] == [Replicas(min=1, max=3), Replicas(min=2, max=8)]


def test_a_gpu_for_one_shard_makes_shards_single_experts() -> None:
    assert [plan.num_gpus for plan in shards(make_spec(overrides={1: {"num_gpus": 1}}), 3, 8)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"replicas": 2}, {"replicas": 3}, "expert 1 asks for replicas 2, expert 2 asks for replicas 3, yet they"),
        ({"replicas": 2}, {"replicas": {"min": 2, "max": 3}}, "expert 2 asks for replicas {min: 2, max: 3}"),
        ({"num_gpus": 0}, {"num_gpus": 1}, "expert 1 asks for num_gpus 0, expert 2 asks for num_gpus 1"),
        ({"num_cpus": "auto"}, {"num_cpus": 1}, "expert 1 asks for num_cpus 'auto'"),
        ({"accelerator_type": "H100"}, {"accelerator_type": "H200"}, "accelerator_type 'H100'"),
        ({"labels": {}}, {"labels": {"zone": "a"}}, "labels {}, expert 2 asks for labels {'zone': 'a'}"),
    ],
)
def test_overrides_that_disagree_are_an_error(one: dict[str, Any], other: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        shards(make_spec(per_actor=4, overrides={1: one, 2: other}), 8, 2)
    assert expected in str(caught.value)


def test_overrides_that_agree_or_name_different_settings_are_none() -> None:
    second_and_third = {2: {"replicas": {"min": 2, "max": 2}, "num_cpus": 1}, 3: {"accelerator_type": "T4"}}
    overrides = {1: {"replicas": 2}, **second_and_third}
    first, second = shards(make_spec(per_actor=4, slices=1, overrides=overrides), 8, 2)
    assert (first.num_replicas, first.num_cpus, first.accelerator_type) == (2, 1, "T4")
    assert (second.num_replicas, second.num_cpus, second.accelerator_type) == (1, "auto", None)


def test_an_override_of_no_expert_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"experts.overrides.8: names no expert .* 0 to 7"):
        shards(make_spec(overrides={8: {"replicas": 2}}), 8, 2)


def test_more_experts_per_actor_than_experts_is_an_error() -> None:
    with pytest.raises(SpecError, match="experts.per_actor: 9 was given; allowed: auto or 1 to 8"):
        shards(make_spec(per_actor=9), 8, 2)


COUNTS = st.integers(1, 64)
AUTO_OR_COUNT = st.just("auto") | st.integers(1, 16)


@given(
    num_experts=COUNTS, num_cpus=COUNTS, per_actor=AUTO_OR_COUNT, slices=AUTO_OR_COUNT, num_gpus=st.sampled_from([0, 1])
)
def test_each_expert_is_in_exactly_one_shard_per_slice(
    num_experts: int, num_cpus: int, per_actor: int | str, slices: int | str, num_gpus: int
) -> None:
    if per_actor != "auto":
        per_actor = min(int(per_actor), num_experts)
    plans = shards(make_spec(per_actor=per_actor, slices=slices, num_gpus=num_gpus), num_experts, num_cpus)
    num_slices = plans[0].num_slices
    assert [plan.index for plan in plans] == list(range(len(plans)))
    assert {plan.num_slices for plan in plans} == {num_slices}
    for part in range(num_slices):
        held = [expert_id for plan in plans if plan.slice_index == part for expert_id in plan.expert_ids]
        assert sorted(held) == list(range(num_experts))
    if per_actor != "auto":
        assert max(len(plan.expert_ids) for plan in plans) <= per_actor
    if slices != "auto":
        assert num_slices == slices


@given(num_experts=COUNTS, num_cpus=COUNTS)
def test_the_default_on_cpus_never_asks_for_more_actors_than_cores(num_experts: int, num_cpus: int) -> None:
    per_actor, slices = cpu_default_shards(num_experts, num_cpus)
    assert len(expert_groups(num_experts, per_actor)) * slices <= num_cpus


@given(num_experts=COUNTS, per_actor=COUNTS)
def test_groups_are_even(num_experts: int, per_actor: int) -> None:
    sizes = [len(group) for group in expert_groups(num_experts, per_actor)]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == num_experts
