"""Configuration of VL-FAU, a compared system: AU recognition with local and global descriptions (method.md, 6)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .compared_config import TINY_BACKBONE, ComparedConfig


ABLATIONS: dict[int, dict[str, bool]] = {
    1: {"use_marl": False, "use_llga": False, "use_glga": False},
    2: {"use_marl": True, "use_llga": False, "use_glga": False},
    3: {"use_marl": True, "use_llga": True, "use_glga": False},
    4: {"use_marl": True, "use_llga": False, "use_glga": True},
    5: {"use_marl": True, "use_llga": True, "use_glga": True},
}
"""The rows of the paper's Table 4."""

TEXT_LOSSES = ("local_text", "global_text", "global_au")


@strict
class VLFAUConfig(ComparedConfig):
    r"""
    use_marl (`bool`): multi-scale combination and a refinement branch for each AU; without it the last stage, pooled.
    use_llga, use_glga (`bool`): the local and the global description, and what is learned from them.
    hidden_size (`int`): width of the combined features and of the decoders' states (d = h = 512 in the paper).
    scale_channels (`int`): channels that each stage brings to the combination: 4 x 256 are the paper's 1024.
    reduction (`int`): how much narrower the channel attention's hidden layer is (CBAM's 16; the paper has no number).
    local_max_length, global_max_length (`int`): tokens of one AU's description, and of the face's.
    num_beams (`int`): of the search by which descriptions are written; 1 is greedy.
    """

    model_type = "vl_fau"
    hub_system = "vl_fau"
    hub_auto_classes = ("AutoConfig", "AutoModel", "AutoModelForPreTraining")
    losses: ClassVar[tuple[str, ...]] = ("au", "emotion", *TEXT_LOSSES)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {
            **TINY_BACKBONE,
            **{"hidden_size": 128, "scale_channels": 32, "reduction": 4, "word_size": 64, "vocab_size": 2048},
            **{"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 3},
        },
        "base": {},
    }

    use_marl: bool = True
    use_llga: bool = True
    use_glga: bool = True
    hidden_size: int = 512
    scale_channels: int = 256
    reduction: int = 16
    word_size: int = 512
    vocab_size: int = 30523  # bert-base-uncased and [DEC]
    pad_token_id: int = 0
    bos_token_id: int = 30522
    eos_token_id: int = 102
    local_max_length: int = 40
    global_max_length: int = 120
    num_beams: int = 3

    bounds = {
        **ComparedConfig.bounds,
        **{"hidden_size": 16384, "scale_channels": 16384, "word_size": 16384, "vocab_size": 1_000_000},
        **{"local_max_length": 65536, "global_max_length": 65536, "num_beams": 1024},
    }

    def adopt_tokenizer(self, tokenizer: Any) -> None:
        """Takes over the ids of the tokens that start, end and pad a description."""
        if len(tokenizer) > self.vocab_size:
            raise ValueError(
                f"vocab_size: the tokenizer has {len(tokenizer)} tokens, the model {self.vocab_size}; build the config "
                f"with vocab_size={len(tokenizer)}"
            )
        self.pad_token_id = tokenizer.pad_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_id = tokenizer.sep_token_id

    @property
    def emotion_max_length(self) -> int:
        """The processor's limit for a text of the whole face."""
        return self.global_max_length

    @property
    def au_max_length(self) -> int:
        """The processor's limit for the texts of all AUs of an image together."""
        return self.local_max_length * len(self.action_units)

    def validate_parts(self) -> None:
        if self.use_llga and not self.use_marl:
            raise ValueError(
                "use_llga: got True with use_marl=False; expected local descriptions only where each AU has features "
                "of its own. Take one of ABLATIONS, the rows of the paper's Table 4"
            )

    def validate_counts(self) -> None:
        least = {"hidden_size": 1, "scale_channels": 1, "word_size": 1, "num_beams": 1, "reduction": 1}
        least |= {"local_max_length": 3, "global_max_length": 3, "vocab_size": 3}
        for field, low in least.items():
            if getattr(self, field) < low:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected at least {low}")
        if self.reduction > self.hidden_size:
            raise ValueError(f"reduction: got {self.reduction}, expected at most hidden_size ({self.hidden_size})")


__all__ = ["VLFAUConfig"]
