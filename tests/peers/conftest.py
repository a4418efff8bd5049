import pytest

from minilora.errors import FetchError
from minilora.models import fetch


@pytest.fixture
def smollm2_file():
    """The fetched GGUF file, or a skip that says how to get it."""
    try:
        return fetch.cached("smollm2-135m")
    except FetchError as error:
        pytest.skip(str(error))
