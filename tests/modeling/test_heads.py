import pytest
import torch

from configuration_mf2 import MF2Config
from modeling_mf2.modeling_mf2 import MF2AlignmentHeads, MF2Classifiers, MF2LanguageHead


ROWS = 2


@pytest.fixture
def classify(make_config, shaken):
    def build(**fields):
        config = make_config(**fields)
        torch.manual_seed(0)
        module = MF2Classifiers(config)
        if module.au_weight is not None:
            torch.nn.init.normal_(module.au_weight)
        return config, shaken(module)

    return build


def states(config):
    emo = torch.randn(ROWS, config.emo_config.num_query_tokens, 32) if config.use_emo_branch else None
    au = torch.randn(ROWS, len(config.action_units), config.au_config.num_query_tokens, 32)
    return emo, au if config.use_au_branch else None


BRANCHES = [{}, {"use_emo_branch": False}, {"use_au_branch": False}]
LABELS = [{}, {"emotions": []}, {"action_units": [], "use_au_branch": False}, {"action_units": ["AU12"]}]


@pytest.mark.parametrize("branches", BRANCHES, ids=str)
@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_every_branch_and_label_set_gets_its_logits(classify, branches, labels):
    fields = {**branches, **labels}
    if not fields.get("use_emo_branch", True) and not fields.get("use_au_branch", True):
        return
    config, module = classify(**fields)
    emo, au = states(config)
    emotion_logits, au_logits = module(emo, au)
    for logits, names in ((emotion_logits, config.emotions), (au_logits, config.action_units)):
        assert (logits is None) == (not names)
        assert logits is None or logits.shape == (ROWS, len(names))
    sum(logits.sum() for logits in (emotion_logits, au_logits) if logits is not None).backward()
    unused = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    # Without emotions nothing reads more of the face than the AU classifier; every parameter has a use.
    assert not unused


def test_logits_against_a_loop(classify):
    config, module = classify()
    emo, au = states(config)
    emotion_logits, au_logits = module(emo, au)
    face, units = module.norm_emo(emo).flatten(1), module.norm_au(au)
    for row in range(ROWS):
        for unit in range(3):
            own = sum(units[row, unit, query] @ module.au_weight[unit, query] for query in range(2))
            whole = module.au_from_face.weight[unit] @ face[row] + module.au_from_face.bias[unit]
            torch.testing.assert_close(au_logits[row, unit], own + module.au_bias[unit] + whole, rtol=1e-4, atol=1e-4)
        seen = torch.cat([face[row], *[units[row, unit].mean(0) for unit in range(3)]])
        expected = module.emotion.weight @ seen + module.emotion.bias
        torch.testing.assert_close(emotion_logits[row], expected, rtol=1e-4, atol=1e-4)


def test_an_action_unit_is_read_from_its_own_region_and_the_face(classify):
    config, module = classify()
    emo, au = states(config)
    _, before = module(emo, au)
    au = au.clone()
    au[:, 1] += torch.randn(2, 32)
    _, after = module(emo, au)
    assert (after - before)[:, 1].abs().min() > 1e-3
    assert torch.allclose(after[:, [0, 2]], before[:, [0, 2]], atol=1e-5)
    _, other_face = module(emo + torch.randn_like(emo), au)
    assert (other_face - after).abs().min() > 1e-4


def test_language_head_writes_with_the_word_embeddings(make_config, shaken):
    head = shaken(MF2LanguageHead(make_config().emo_config))
    words, text = torch.randn(40, 32), torch.randn(2, 5, 32)
    logits = head(text, words)
    hidden = head.norm(torch.nn.functional.gelu(head.transform(text)))
    torch.testing.assert_close(logits, hidden @ words.T + head.bias)
    assert not any(parameter.shape == words.shape for parameter in head.parameters())


def test_features_are_unit_vectors(make_config, shaken):
    heads = shaken(MF2AlignmentHeads(make_config().emo_config))
    queries, text = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    image_features, text_features = heads.image_features(queries), heads.text_features(text)
    assert image_features.shape == (2, 3, 8) and text_features.shape == (2, 8)
    for features in (image_features, text_features):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]))
    changed = text.clone()
    changed[:, 1:] += 1  # a sentence is read at its first token
    assert torch.equal(heads.text_features(changed), text_features)


def test_without_the_face_the_aus_answer_alone() -> None:
    """What the AUs alone say depends on nothing that Emo-VL saw, and on all that AU-VL did."""
    config = MF2Config.from_size("tiny")
    heads = MF2Classifiers(config).eval()
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    emo = torch.randn(2, config.emo_config.num_query_tokens, config.emo_config.hidden_size)
    au = torch.randn(2, 12, config.au_config.num_query_tokens, config.au_config.hidden_size)
    alone = heads(None, au)
    for found, whole, other in zip(alone, heads(emo, au), heads(None, au + torch.randn_like(au)), strict=True):
        assert found.shape == whole.shape and not torch.allclose(found, whole) and not torch.allclose(found, other)
    with torch.no_grad():
        for layer, width in ((heads.emotion, heads.emo_width), (heads.au_from_face, heads.emo_width)):
            layer.weight[:, :width] = 0
    for found, whole in zip(alone, heads(emo, au), strict=True):
        torch.testing.assert_close(found, whole)
