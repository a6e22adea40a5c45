from protos import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    FLOAT32: _ClassVar[Dtype]
    BFLOAT16: _ClassVar[Dtype]
    FLOAT64: _ClassVar[Dtype]
DTYPE_UNSPECIFIED: Dtype
FLOAT32: Dtype
BFLOAT16: Dtype
FLOAT64: Dtype

class Rows(_message.Message):
    __slots__ = ("dtype", "num_rows", "width", "missing_experts")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    MISSING_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    dtype: Dtype
    num_rows: int
    width: int
    missing_experts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[_Union[Dtype, str]] = ..., num_rows: _Optional[int] = ..., width: _Optional[int] = ..., missing_experts: _Optional[_Iterable[int]] = ...) -> None: ...

class LayerRows(_message.Message):
    __slots__ = ("layer", "rows", "has_gate_rows", "task_ids", "num_rows_per_task")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    HAS_GATE_ROWS_FIELD_NUMBER: _ClassVar[int]
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_PER_TASK_FIELD_NUMBER: _ClassVar[int]
    layer: int
    rows: Rows
    has_gate_rows: bool
    task_ids: _containers.RepeatedScalarFieldContainer[int]
    num_rows_per_task: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[int] = ..., rows: _Optional[_Union[Rows, _Mapping]] = ..., has_gate_rows: _Optional[bool] = ..., task_ids: _Optional[_Iterable[int]] = ..., num_rows_per_task: _Optional[_Iterable[int]] = ...) -> None: ...

class ExpertRows(_message.Message):
    __slots__ = ("layer", "expert_ids", "num_rows_per_expert", "rows")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_PER_EXPERT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    expert_ids: _containers.RepeatedScalarFieldContainer[int]
    num_rows_per_expert: _containers.RepeatedScalarFieldContainer[int]
    rows: Rows
    def __init__(self, layer: _Optional[int] = ..., expert_ids: _Optional[_Iterable[int]] = ..., num_rows_per_expert: _Optional[_Iterable[int]] = ..., rows: _Optional[_Union[Rows, _Mapping]] = ...) -> None: ...

class CallFailure(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("nonce", "proof", "role", "key_ids")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    KEY_IDS_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    proof: bytes
    role: str
    key_ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, nonce: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., role: _Optional[str] = ..., key_ids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("answer",)
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    answer: bool
    def __init__(self, answer: _Optional[bool] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("first_call_id",)
    FIRST_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    first_call_id: int
    def __init__(self, first_call_id: _Optional[int] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("layer_rows", "expert_rows", "rows", "failure", "hello", "submit", "cancel", "step_output", "leaving", "ping", "progress")
    LAYER_ROWS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    STEP_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    layer_rows: LayerRows
    expert_rows: ExpertRows
    rows: Rows
    failure: CallFailure
    hello: Hello
    submit: _generation_pb2.Submit
    cancel: _generation_pb2.Cancel
    step_output: _generation_pb2.StepOutput
    leaving: _generation_pb2.Leaving
    ping: Ping
    progress: Progress
    def __init__(self, layer_rows: _Optional[_Union[LayerRows, _Mapping]] = ..., expert_rows: _Optional[_Union[ExpertRows, _Mapping]] = ..., rows: _Optional[_Union[Rows, _Mapping]] = ..., failure: _Optional[_Union[CallFailure, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., submit: _Optional[_Union[_generation_pb2.Submit, _Mapping]] = ..., cancel: _Optional[_Union[_generation_pb2.Cancel, _Mapping]] = ..., step_output: _Optional[_Union[_generation_pb2.StepOutput, _Mapping]] = ..., leaving: _Optional[_Union[_generation_pb2.Leaving, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...
