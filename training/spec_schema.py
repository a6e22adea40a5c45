"""The training file as typed, frozen data: one class for each section, one line of documentation for each field."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from spec.fields import (
    Count,
    CountOrNull,
    CountOrZero,
    Name,
    NumCpus,
    NumGpus,
    Seconds,
    Text,
    TextOrNull,
)
from spec.replicas import ONE, ReplicaCount
from spec.rules import Allowed, one_of
from spec.section import Section
from training.spec_fields import (
    SOURCES,
    Bool,
    Decay,
    Eps,
    NotNegative,
    NumExperts,
    NumLayers,
    NumSteps,
    PathOrNull,
    PathText,
    Positive,
    PositiveOrNull,
    Seed,
    Size,
    SizeOrNull,
    UpToHalf,
)


class ConfigSpec(Section):
    """The shape of a new model, whose weights are drawn at random. Its vocabulary is the tokenizer's."""

    hidden_size: Size
    """Width of a row."""
    ffn_size: Size
    """Width of an expert's hidden columns."""
    num_layers: NumLayers
    """Layers."""
    num_heads: Size
    """Query heads of one layer."""
    num_kv_heads: Size
    """Key and value heads of one layer; each serves as many query heads as there are more of those."""
    head_dim: SizeOrNull = None
    """Width of one head, an even number; null: `hidden_size` / `num_heads`."""
    num_experts: NumExperts = 8
    """Experts of one layer."""
    top_k: NumExperts = 2
    """Experts that each row goes to."""
    window: SizeOrNull = None
    """How many positions a query sees, itself included; null: all (full attention)."""
    max_context: Size = 4096
    """The most positions of one sequence."""
    rope_theta: Positive = 10000.0
    """The base of the rotary embedding's wavelengths."""
    norm_eps: Positive = 1e-5
    """What the norms add before they divide."""
    tie_embeddings: Bool = False
    """Whether the output layer is the input embedding."""


class ModelSpec(Section):
    """The model to train: a checkpoint (`path`) or a new one (`config`)."""

    path: PathOrNull = None
    """A Hugging Face Mixtral directory to start from. Either this or `config`."""
    config: Annotated[ConfigSpec | None, Allowed("a section, or null")] = None
    """The shape of a new model. Either this or `path`."""
    tokenizer: PathOrNull = None
    """A directory with tokenizer.json; null: `path`. Must be given with `config`."""
    routing: Annotated[Literal["token", "sentence", "task"], one_of("token", "sentence", "task")] = "token"
    """What one gating decision covers: a token, a sequence or a task."""
    sentence_positions: Size = 32
    """With `routing: sentence`: how many positions decide for a sequence, counted from its first."""
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], one_of("float32", "bfloat16", "float64")] = "float32"
    """What is computed in; weights are kept in float32, or in float64 if that is given."""
    seed: Seed = 0
    """What a new model's weights, the order of the data and every other random choice follow from."""

    @property
    def tokenizer_directory(self) -> Path:
        """Where tokenizer.json lies."""
        directory = self.tokenizer or self.path
        assert directory is not None  # training/spec_checks.py refuses a model with neither
        return Path(directory)


class SourceSpec(Section):
    """Documents to train on. With `model.routing: task`, each source says which task its documents are of."""

    path: PathText
    """A file, a folder (all files below it) or a pattern such as `corpus/*.jsonl`. One document: 64 MiB at most."""
    format: Annotated[Literal["auto", "text", "jsonl", "parquet"], one_of("auto", "text", "jsonl", "parquet")] = "auto"
    """What the files are; auto: what their names end in."""
    column: Text = "text"
    """The field (jsonl) or column (parquet) that holds a document's text."""
    task: TextOrNull = None
    """The task of all documents of this source. Either this or `task_column`."""
    task_column: TextOrNull = None
    """The field or column that names a document's task."""


class DataSpec(Section):
    """What the model learns from, and how it is cut into sequences."""

    sources: Annotated[tuple[SourceSpec, ...], Allowed(SOURCES.words), BeforeValidator(SOURCES.check)]
    """Where the documents lie: a list of sections, each with at least a `path`."""
    held_out: UpToHalf = 0
    """The share of documents that are kept from training, to evaluate on."""
    sequence_length: Count = 256
    """Tokens of one sequence; documents are packed into sequences of this length."""
    separate_documents: Bool = True
    """Whether attention stops at the ends of documents, where one sequence holds several."""


class ParallelSpec(Section):
    """The workers, and how the experts are divided among them."""

    workers: ReplicaCount = ONE
    """Processes that train; with a range, as many as all hosts hold: what else runs there is not seen."""
    expert_parallel: Count = 1
    """Workers that hold one set of experts between them; divides the experts, and the workers if they are no range."""
    num_gpus: NumGpus = 0
    """The share of a GPU that one worker has, at most 1."""
    num_cpus: NumCpus = "auto"
    """CPUs that Ray sets aside for one worker; auto: 1, or less on few cores of Manta's own Ray. 0 only with GPUs."""
    dispatch: Annotated[Literal["dropless", "capacity"], one_of("dropless", "capacity")] = "dropless"
    """What happens to copies for a crowded expert: all are computed, or those beyond its capacity are left out."""
    capacity_factor: Positive = 1.25
    """With `dispatch: capacity`: the copies that an expert takes, as a multiple of its even share."""


class OptimizerSpec(Section):
    """How weights follow their gradients. The learning rate rises linearly, then falls along a cosine."""

    name: Annotated[Literal["adamw", "sgd"], one_of("adamw", "sgd")] = "adamw"
    """The optimizer."""
    peak_lr: Positive = 1e-3
    """The learning rate after `warmup_steps`."""
    final_lr: NotNegative = 1e-4
    """The learning rate of the last step."""
    warmup_steps: CountOrZero = 100
    """Steps in which the learning rate rises to `peak_lr`."""
    beta1: Decay = 0.9
    """AdamW: how much of the gradients' mean is kept from one step to the next."""
    beta2: Decay = 0.95
    """AdamW: how much of the squared gradients' mean is kept from one step to the next."""
    eps: Eps = 1e-8
    """AdamW: what is added to the divisor."""
    momentum: Decay = 0
    """SGD: how much of the last update is kept."""
    weight_decay: NotNegative = 0.1
    """How strongly weights are drawn towards 0; those of norms are not."""
    clip_norm: PositiveOrNull = 1.0
    """The norm that the gradient of one step is cut to; null: it is not cut."""


class ScheduleSpec(Section):
    """How long training goes on."""

    steps: NumSteps
    """Steps in all, those before a resumption included."""
    batch: Count
    """Sequences of one step, over all workers."""
    evaluate_every: CountOrNull = None
    """Steps between two evaluations on the documents that `data.held_out` keeps; null: none."""
    evaluate_batches: Count = 8
    """Batches of one evaluation."""


class LossesSpec(Section):
    """What is minimised besides the loss of the next token, and the noise that makes gates try other experts."""

    balance: NotNegative = 0.01
    """The weight of the loss that keeps the experts evenly busy; 0: none."""
    balance_scope: Annotated[Literal["batch", "rank"], one_of("batch", "rank")] = "batch"
    """What is balanced: the rows of all workers together, or those of each worker."""
    router_z: NotNegative = 0
    """The weight of the loss that keeps the gates' logits small; 0: none."""
    jitter: UpToHalf = 0
    """How far a gate's input is scaled at random in training: by 1 - `jitter` to 1 + `jitter`."""


class CheckpointsSpec(Section):
    """What is kept to resume from."""

    every: Count = 100
    """Steps between two checkpoints; the last step always leaves one."""
    keep: Count = 2
    """How many are kept: the newest."""


class LimitsSpec(Section):
    """How often things may fail, and how long they may take."""

    max_failures: CountOrZero = 3
    """How often a run may lose workers, or find no room for them again, and go on; hosts withdrawn do not count."""
    start_timeout_s: Seconds = 300
    """How long workers may take to find room and start; with a range, how long a lost host is waited for."""
    collective_timeout_s: Seconds = 300
    """How long a worker waits for the others in an exchange before it counts as failed."""
    save_timeout_s: Seconds = 600
    """How long a checkpoint may take."""


class TrainingSpec(Section):
    """One training run."""

    name: Name = "run"
    """The run's name; a run of the same name and storage is resumed."""
    storage: PathText
    """A folder that every host sees: tokens, checkpoints, metrics."""
    model: ModelSpec
    data: DataSpec
    parallel: ParallelSpec = ParallelSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec
    losses: LossesSpec = LossesSpec()
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    limits: LimitsSpec = LimitsSpec()
