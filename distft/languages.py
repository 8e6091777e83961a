"""Which language a text is in, by py3langid, whose model lies in its package."""

from __future__ import annotations

from functools import cache
from typing import Any

_CODES = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext
fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja
jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no
nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk
tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx
"""
CODES = tuple(_CODES.split())
"""Of the languages that can be told apart. Written down, so that reading a configuration loads no
model; it takes 80 MB."""

READ_CHARS = 2000
"""The beginning of a text; more costs time and changes little."""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def told(text: str) -> tuple[str, float]:
    """Return the likeliest language of a text.

    Args:
        text: Of which the first 2,000 characters are read.

    Returns:
        (code, probability from 0 to 1); of a few words the probability is low, whatever they say.
    """
    code, probability = _identifier().classify(text[:READ_CHARS])
    return str(code), float(probability)
