"""Captioning: the text stream of a branch writes, token by token, what its queries have seen."""

import dataclasses

import torch
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config

from .losses_mf2 import itg_loss
from .modeling_mf2 import Branch, MF2Model, MF2PreTrainedModel, check_unused, kept_states


# transformers 5.24 renamed `past_key_values` to `cache`, in `generate` and in its outputs. Ours take either name.
_output_fields = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
CACHE_NAME = "cache" if "cache" in _output_fields else "past_key_values"


class MF2ForCaptioning(MF2PreTrainedModel, GenerationMixin):
    """Writes what it sees: Emo-VL the emotion caption (and, after its prompt, the key-AU caption), AU-VL each AU's."""

    main_input_name = "input_ids"
    adapter_pathways = ()  # text attends to keys and values, which no adapter changes
    _keys_to_ignore_on_load_unexpected = [r"^classifiers\."]

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        self.mf2 = MF2Model(config)
        self.post_init()

    def _usual(self, branch: Branch, prompted: bool) -> dict[str, int]:
        tokens = self.config.emo_config
        emotion_caption = branch == "emo" and not prompted
        return {
            "bos_token_id": tokens.bos_token_id,
            "eos_token_id": tokens.eos_token_id,
            "pad_token_id": tokens.pad_token_id,
            "max_length": self.config.emotion_max_length if emotion_caption else self.config.au_max_length,
        }

    def see(
        self,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        branch: Branch = "emo",
    ) -> torch.Tensor:
        """What text attends to: (rows, layers, 2, heads, queries, head_dim); a row is an image, or one of its AUs."""
        image = self.mf2.branch_image(branch, self.mf2.look(pixel_values, image_tokens), landmarks)
        pairs = self.mf2.read(branch, image, output_key_values=True).query_key_values
        return torch.stack([torch.stack(pair, dim=1) for pair in pairs], dim=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        query_key_values: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        branch: Branch = "emo",
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        r"""
        input_ids (`(rows, length)`): text so far, starting with `[DEC]`; a row an image, or an AU of an image.
        query_key_values: of `see`; computed here when an image is given in its place.
        labels (`(rows, length)`): the text itself for a loss; -100 where it does not count.
        cache, past_key_values: one thing under transformers' new and its old name.
        """
        check_unused(self, kwargs)
        if query_key_values is None:
            query_key_values = self.see(pixel_values, landmarks, image_tokens, branch)
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        module = self.mf2.branch(branch)
        read = module.qformer(
            input_ids=input_ids,
            text_mask=attention_mask,
            query_key_values=tuple((layer[:, 0], layer[:, 1]) for layer in query_key_values.unbind(1)),
            mode="causal",
            past_key_values=cache,
            **kept_states(self.config, output_hidden_states, output_attentions),
        )
        logits = module.language_logits(read.text_states)
        loss = None if labels is None else itg_loss(logits, labels.clamp_min(0), labels != -100)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=read.text_hidden_states,
            attentions=read.text_attentions,
            **{CACHE_NAME: cache},
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        query_key_values: torch.Tensor | None = None,
        branch: Branch = "emo",
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: object,
    ) -> dict[str, object]:
        cache = past_key_values if cache is None else cache
        past = cache.get_seq_length() if cache is not None else 0
        return {
            "input_ids": input_ids[:, past:],
            "attention_mask": attention_mask,
            "query_key_values": query_key_values,
            CACHE_NAME: cache,
            "branch": branch,
            "use_cache": use_cache,
        }

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        branch: Branch = "emo",
        input_ids: torch.Tensor | None = None,
        use_cache: bool = True,
        **kwargs: object,
    ) -> torch.Tensor | ModelOutput:
        """Token ids (batch, length), or (batch, AU, length) with `branch="au"`; greedy, beam, sampled as `kwargs` say.

        input_ids (`(1 or rows, length)`): what the text starts with in place of `[DEC]` alone, such as the prompt of
        key-AU captions.
        """
        seen = self.see(pixel_values, landmarks, image_tokens, branch)
        prompted = input_ids is not None
        if not prompted:
            input_ids = torch.full((1, 1), self.config.emo_config.bos_token_id, device=seen.device)
        if len(input_ids) not in (1, len(seen)):
            raise ValueError(
                f"input_ids: got {len(input_ids)} rows, expected 1 for all, or {len(seen)}: one for each image, or for "
                "each AU of each image"
            )
        # A checkpoint of another class brings no generation config: what it does not say, the model's config does.
        given = kwargs.get("generation_config") or self.generation_config
        for name, value in self._usual(branch, prompted).items():
            lengths = (given.max_new_tokens, kwargs.get("max_new_tokens")) if name == "max_length" else ()
            if getattr(given, name, None) is None and all(length is None for length in lengths):
                kwargs.setdefault(name, value)
        given = [kwargs.pop(name, None) for name in ("cache", "past_key_values")]
        if use_cache:
            kwargs[CACHE_NAME] = next((cache for cache in given if cache is not None), DynamicCache())
        output = super().generate(
            input_ids=input_ids.expand(len(seen), -1),
            query_key_values=seen,
            branch=branch,
            use_cache=use_cache,
            **kwargs,
        )
        if branch == "au" and isinstance(output, torch.Tensor):
            several = output.shape[0] // seen.shape[0]
            shape = (-1, len(self.config.action_units), *([several] if several > 1 else []))
            return output.unflatten(0, shape)
        return output


__all__ = ["MF2ForCaptioning"]
