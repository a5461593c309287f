"""Every corpus is found by name, and says its protocol."""

import pytest

from configuration_mf2.facs_mf2 import LABEL_SETS
from dataset_mf2.label_files_mf2 import CorpusError
from dataset_mf2.sources_mf2 import SOURCES, protocol, read_corpus


@pytest.mark.parametrize("corpus", list(SOURCES))
def test_an_empty_folder_is_told_what_belongs_into_it(corpus, tmp_path):
    assert corpus == "own" or corpus in LABEL_SETS
    assert len(protocol(corpus)) > 200
    with pytest.raises(CorpusError, match=r"got .*, expected .*"):
        read_corpus(corpus, tmp_path)
