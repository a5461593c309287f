"""Every corpus is found by name, and says its protocol."""

import pytest

from configuration_mf2.facs import LABEL_SETS
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.corpora.read import SOURCES, protocol, read_corpus


@pytest.mark.parametrize("corpus", list(SOURCES))
def test_an_empty_folder_is_told_what_belongs_into_it(corpus, tmp_path):
    assert corpus == "own" or corpus in LABEL_SETS
    assert len(protocol(corpus)) > 200
    with pytest.raises(CorpusError, match=r"got .*, expected .*"):
        read_corpus(corpus, tmp_path)
