"""One loaded base and the adapters on it: whose turn it is to be asked, and how a newcomer takes a seat without the base being loaded anew.

It refuses a newcomer whose method PEFT cannot hold beside those seated, or whose tensors are not exactly the model's; those seated stay as they were.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuner.artifact.store import Version
from tuner.base import Base, Precision
from tuner.errors import refuse
from tuner.safe_text import quoted

if TYPE_CHECKING:
    import torch

    from tuner.artifact.untrusted import Payload

WEIGHTS = "adapter_model.safetensors"
FIRST = "default"  # PEFT's own name for the first adapter
REFILLED = ("LORA", "IA3")  # methods whose saved tensors are the model's own parameters, one for one: with an equal configuration they change places
NEVER_THE_SAME = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "lora_dropout")  # of a config: they change no answer


@dataclass(frozen=True, slots=True)
class Loading:
    """How a base was loaded: newcomers must have been loaded so by themselves. `rows`: of its embedding before any token was added."""

    base: Base
    precision: Precision
    load: str | None
    device: str | None
    rows: int


@dataclass(eq=False)
class Seat:
    """An adapter's place on a host: the name PEFT knows it by. Its weights go when it is left and the last answer under way has ended."""

    host: Host
    slot: str
    answers_under_way: int = 0
    is_left: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the model, by their names in the file

    @property
    def virtual_tokens(self) -> int:
        """Trained tokens, or keys of them, that come before every prompt."""
        config = self.host.config(self.slot)
        return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0

    def turn(self, as_base: bool = False) -> contextlib.AbstractContextManager[None]:
        return self.host.turn(self, as_base)

    def hold(self) -> Hold:
        """An answer begins: the weights stay until the hold is released."""
        with self.host.lock:
            self.answers_under_way += 1
        return Hold(self)

    def release(self) -> None:
        with self.host.lock:
            self.answers_under_way -= 1
            self._empty()

    def leave(self) -> None:
        with self.host.lock:
            self.is_left = True
            self._empty()

    def _empty(self) -> None:
        if self.is_left and not self.answers_under_way:
            self.parameters = {}
            self.host.drop(self)


class Hold:
    """What an answer under way has of its seat. Released once, also when it is only forgotten."""

    def __init__(self, seat: Seat):
        self._seat: Seat | None = seat

    def release(self) -> None:
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.release()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


class Host:
    """A loaded base with its lock. `model` is a PeftModel, or a plain model where the adapter was merged; None once it was closed."""

    def __init__(self, model: Any, loading: Loading | None = None):
        self.model, self.loading = model, loading
        self.is_merged = not hasattr(model, "peft_config")
        self.lock = threading.RLock()
        self.seats: list[Seat] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="tuner-answers")
        self._given = 0

    @property
    def worker(self) -> ThreadPoolExecutor:
        """The one thread that answers for event loops: the model does one thing at a time, and no loop waits for its lock. Raises Refusal once closed."""
        self.refuse_closed()
        return self._worker

    def refuse_closed(self, seat: Seat | None = None) -> None:
        """Raises Refusal where the model was dropped, or this seat left."""
        if self.model is None or (seat is not None and seat not in self.seats):
            refuse("adapter", "closed", "an adapter that was closed", "one that is open", "load it again")

    def config(self, slot: str) -> Any:
        """PEFT's configuration of a seat, or None."""
        return None if self.is_merged or self.model is None else self.model.peft_config.get(slot)

    def first(self, parameters: Mapping[str, Any] | None = None) -> Seat:
        """The seat of the adapter the model was opened with."""
        seat = Seat(self, FIRST, parameters=parameters or {})
        self.seats.append(seat)
        return seat

    @contextlib.contextmanager
    def turn(self, seat: Seat, as_base: bool = False) -> Iterator[None]:
        """Inside, nobody else asks the model, and it is in the state of this seat; with `as_base` the bare base. Raises Refusal once it was closed."""
        with self.lock:
            self.refuse_closed(seat)
            if self.is_merged:
                yield
                return
            self._activate(seat.slot)
            with self._bare() if as_base else contextlib.nullcontext():
                yield

    @contextlib.contextmanager
    def _bare(self) -> Iterator[None]:
        """As PeftModel.disable_adapter, which also looks at every layer's status first: 51 ms instead of 20 on SmolLM2 (2026-11-20), once a token."""
        if self.model.active_peft_config.is_prompt_learning:
            with self.model.disable_adapter():
                yield
            return
        self.model.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            self.model.base_model.enable_adapter_layers()

    def _activate(self, slot: str) -> None:
        if self.model.active_adapter != slot:
            self.model.set_adapter(slot, inference_mode=True)

    # --- newcomers

    def seat(self, version: Version, payload: Payload) -> Seat:
        """Put the weights of a verified version beside those that are there. Raises Refusal, and then nothing of it stays."""
        from tuner.artifact.untrusted import refuse_unfit

        with self.lock:
            refuse_unfit(version.label, payload, self.model.get_base_model())
            self._refuse_other_method(version)
            self._given += 1
            seat = Seat(self, f"seat{self._given}")
            with contextlib.ExitStack() as undo:
                undo.callback(self._remove, seat.slot, self.model.active_adapter)
                self._load(version, seat.slot)
                seat.parameters = check_weights(version, self.model, seat.slot)
                undo.pop_all()
            self.seats.append(seat)
            return seat

    def _load(self, version: Version, slot: str) -> None:
        from peft.utils.error import NoMatchingPeftModuleError

        precision = self.loading.precision.device if self.loading else None
        try:
            self.model.load_adapter(str(version.folder.resolve()), slot, autocast_adapter_dtype=False, torch_device=precision, local_files_only=True)
        except (ValueError, RuntimeError, KeyError, NoMatchingPeftModuleError) as error:
            refuse(version.label, WEIGHTS, quoted(error, 160), "an adapter that PEFT can put beside those that are loaded", "load it anew with load_adapter")

    def _refuse_other_method(self, version: Version) -> None:
        from peft import PeftConfig

        theirs = PeftConfig.from_pretrained(str(version.folder.resolve())).peft_type
        if self.is_merged:
            refuse(version.label, "merge", "an adapter that was merged into its base", "a base as it was", "load this version anew with load_adapter")
        if theirs != self.model.peft_type:
            refuse(version.label, "peft_type", f"{theirs.value} beside {self.model.peft_type.value}", "methods of one kind: PEFT holds only such on one base",
                   "load it anew with load_adapter")  # fmt: skip

    def refill(self, seat: Seat, version: Version) -> bool:
        """The weights of `version` in place of this seat's, where both have the same configuration and nobody is being answered; else False.

        Raises Refusal, and the seat keeps its own weights.
        """
        from peft import PeftConfig
        from safetensors.torch import load_file

        with self.lock:
            if not seat.parameters or seat.answers_under_way or self.model.peft_type.value not in REFILLED:
                return False
            theirs, ours = PeftConfig.from_pretrained(str(version.folder.resolve())), self.config(seat.slot)
            if _settings(theirs) != _settings(ours):
                return False
            tensors = load_file(version.folder / WEIGHTS)
            refuse_odd_names(version, set(seat.parameters), set(tensors))
            odd = [name for name, tensor in tensors.items() if tensor.shape != seat.parameters[name].shape]
            if odd:
                refuse(
                    version.label, odd[0], f"shape {tuple(tensors[odd[0]].shape)}", f"shape {tuple(seat.parameters[odd[0]].shape)}", "restore it from a copy"
                )
            _exchange([(seat.parameters[name], tensor) for name, tensor in tensors.items()])
            return True

    # --- leaving

    def drop(self, seat: Seat) -> None:
        """Its weights leave memory; the model itself does with the last."""
        with self.lock:
            if seat not in self.seats:
                return
            self.seats.remove(seat)
            if self.seats:
                self._remove(seat.slot, self.seats[0].slot)
                return
            self.model = None
            self._worker.shutdown(wait=False)

    def _remove(self, slot: str, active: str) -> None:
        """PEFT's layers and settings of a name, also where they were only half made."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        self._activate(active)
        with warnings.catch_warnings(action="ignore"):  # which adapter is active next is said by `_activate`
            if slot in self.model.peft_config:
                self.model.delete_adapter(slot)
            for module in self.model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.delete_adapter(slot)
                elif isinstance(module, AuxiliaryTrainingWrapper):
                    module.delete_adapter(slot, new_active_adapters=[active])
        self.model.set_adapter(active, inference_mode=True)


def _settings(config: Any) -> dict[str, Any]:
    """What of a PEFT configuration decides the answers."""
    return {name: value for name, value in config.to_dict().items() if name not in NEVER_THE_SAME}


def _exchange(pairs: list[tuple[Any, torch.Tensor]]) -> None:
    """Each parameter's numbers replaced by those beside it, all or none: an interrupt on the way puts the old ones back."""
    ready = [(parameter, tensor.to(parameter.device, parameter.dtype)) for parameter, tensor in pairs]
    undo = contextlib.ExitStack()
    with undo:
        for parameter, tensor in ready:
            undo.callback(setattr, parameter, "data", parameter.data)
            parameter.data = tensor
        undo.pop_all()


def check_weights(version: Version, model: Any, slot: str = FIRST) -> Mapping[str, Any]:
    """Every tensor of the file in the model, none missing, all finite: PEFT itself drops or ignores what does not fit.

    Returns the model's own tensors of the adapter, by their names in the file.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    state = model.state_dict(keep_vars=True)
    held: dict[str, torch.Tensor] = get_peft_model_state_dict(model, state_dict=state, adapter_name=slot, save_embedding_layers=False)
    with safe_open(version.folder / WEIGHTS, framework="pt") as saved:
        refuse_odd_names(version, set(held), set(saved.keys()))
    refuse_infinite(version, held.values())
    return held


def refuse_odd_names(version: Version, held: set[str], saved: set[str]) -> None:
    if held != saved:
        odd = sorted(held ^ saved)
        refuse(version.label, WEIGHTS, f"{len(odd)} tensors that do not match the model, such as {quoted(odd[0], 120)}",
               "exactly the adapter's tensors", "load it on the base it was trained on")  # fmt: skip


def refuse_infinite(version: Version, tensors: Any) -> None:
    import torch

    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        refuse(version.label, WEIGHTS, "weights that are not finite numbers", "finite weights", "do not serve it; train again")
