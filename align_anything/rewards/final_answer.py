r"""Which text is the answer: what is boxed, what stands between signs of mathematics, or what a sentence comes to.

Nothing here takes a part out of mathematics: the answer is whole, or is prose.
"""

from __future__ import annotations

import re

from latex2sympy2_extended.math_normalization import extract_boxed_content

ENCLOSING = (
    ('$$', '$$'),
    ('$', '$'),
    ('\\(', '\\)'),
    ('\\[', '\\]'),
    ('`', '`'),
    ('"', '"'),
    ("'", "'"),
    ('“', '”'),
    ('‘', '’'),
)
# A dollar sign before a number is money.
MONEY = re.compile(r'-?\\?\$\s*-?[\d.]')
DELIMITED = re.compile(
    r'(?<!\\)\$\$(.+?)\$\$|(?<!\\)\$(?!\s)([^$\n]+?)(?<![\\\s])\$|\\\((.+?)\\\)|(?<!\\)\\\[(.+?)(?<!\\)\\\]', re.DOTALL
)
BETWEEN = re.compile(r'\s*(?:,|,?\s*(?:and|or)\b|和|或|、)\s*')
ONLY_JOINED = re.compile(r'(?:[\s,;]|\b(?:and|or)\b|和|或|、)*')
COMMAND = re.compile(r'\\(?:operatorname|text[a-z]*|math[a-z]+|mbox|begin|end)\*?\s*\{[^{}]*\}|\\[A-Za-z]+')
ENVIRONMENT = re.compile(r'\\begin\{.+?\\end\{\w+\*?\}', re.DOTALL)
WRAPPED = re.compile(r'\\(?:text[a-z]*|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}')
# Written without spaces around numbers.
HAN = re.compile(r'[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]')
WORD = re.compile(r'[^\W\d_]{2,}')
SHORT_WORDS = frozenset('am an as at be by do he if in is it me my no of on or so to up us we'.split())
JOINING = ('and', 'or')
FUNCTIONS = frozenset(
    'sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lim max min gcd lcm det mod sqrt inf oo '
    'infinity deg arg dim pi base'.split()
)
QUANTITY = re.compile(
    r'[-+]?\s*(?:\\?\$|[€£¥₹])?\s*[\d.,]*\d(?:\s*/\s*\d+|\s*\\[dt]?frac\{\d+\}\{\d+\})?'
    r'\s*(?:%|°)?\s*[A-Za-z°µ][A-Za-z ./]{0,30}(?:\^\{?\d\}?|[²³])?'
)
STATED = re.compile(
    r'(?i:\b(?:answer|result|solution)s?\b(?:\s+(?:is|are|was|equals)\b)?|答案|结果|解为)\s*(?:是|为)?\s*[:=：]?'
)
IS = re.compile(r'(?i:\b(?:is|are|equals|gives|get|be)\b)|(?<=[^\W\d_]):(?=\s)|是|为|：')
EQUALS = re.compile(r'(?<![<>!:\\])=')
SENTENCE_END = re.compile(r'\n|[.;](?=\s|$)|[。；，]|,?\s+(?:because|since|as|which|where|for|so|when)\b')
NUMBER = re.compile(
    r'(?<![A-Za-z0-9_^{\\/.,])-?(?:\\?\$|[€£¥₹])?-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?:\s*\\?%)?'
    r'(?![\\^_({*/!\d]|[A-Za-z](?![A-Za-z]))'
)
FEW_WORDS, MOST_IN_UNIT, MOST_POINTS = 6, 3, 4


def golden_answer(text: str) -> str:
    """Returns the answer that a golden answer marks; all of it where it marks none."""
    text = marked(text)
    if not is_prose(text):
        return text
    said = stated(text)
    if said and not is_prose(said):
        return said
    found = _delimited(text)
    if len(found) == 1 and not re.search(r'\d', text.replace(found[0][0], '')):
        return _content(found[0])
    return text


def is_sentence(golden: str) -> bool:
    """Whether a golden answer is many words, none of which it marks as the answer."""
    text = golden_answer(golden)
    return is_prose(text) and len(text.split()) > FEW_WORDS


def given_answer(text: str) -> str:
    """Returns the answer that a response comes to.

    That is what is boxed, what follows `####`, the whole where it is mathematics, what follows `the answer is`, the
    last mathematics between signs, what follows the last `is`, or the last number of a text, in that order.
    """
    text = marked(text)
    if not is_prose(text):
        return text
    said = stated(text)
    if said and (not is_prose(said) or not re.search(r'\d|\\|\$', said) and len(said.split()) <= FEW_WORDS):
        return said
    delimited = _last_delimited(text)
    if delimited:
        return delimited
    for marker in (IS, EQUALS):
        found = _after(marker, text)
        if found and not is_prose(found):
            return found
    numbers = NUMBER.findall(HAN.sub(' ', text))
    return numbers[-1] if numbers else _after(IS, text) or text


def stated(text: str) -> str:
    """Returns what a text calls its answer, up to the end of the sentence; '' where it says no such thing."""
    return _after(STATED, text)


def is_prose(text: str) -> bool:
    """Whether a text has words that are neither functions nor the unit of a number."""
    found = WORD.findall(COMMAND.sub(' ', text))
    # Capital letters are points of a figure.
    words = [word.lower() for word in found if not (word.isupper() and len(word) <= MOST_POINTS)]
    words = [word for word in words if word not in FUNCTIONS and word not in JOINING]
    if QUANTITY.fullmatch(text) and not SHORT_WORDS.intersection(words) - {'in'} and len(words) <= MOST_IN_UNIT:
        return False
    return bool(re.search(r'\n|' + HAN.pattern, text) or any(_is_word(word) for word in words))


def _is_word(word: str) -> bool:
    return len(word) > 2 or word in SHORT_WORDS


def marked(text: str) -> str:
    """Returns what is boxed or follows `####`, else the text; without what encloses the whole of it."""
    text = ENVIRONMENT.sub(lambda found: ' '.join(found[0].split()), text.rpartition('####')[2].strip())
    if '\\boxed' in text or '\\fbox' in text:
        text = extract_boxed_content(text, mode='last')
    text = unwrapped(text)
    found = _delimited(text)
    return _joined(text, found, first=True) if found and ONLY_JOINED.fullmatch(DELIMITED.sub('', text)) else text


def unwrapped(text: str) -> str:
    """Returns a text without what encloses the whole of it: signs of mathematics, quotes, bold; and the last stop."""
    before = None
    while text != before:
        before = text
        text = re.sub(r'(?<!\\)[.。,，;:：*]+$|^\*+', '', text.strip()).strip()
        for left, right in ENCLOSING:
            inner = text[len(left) : len(text) - len(right)]
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                if not text.endswith('\\' + right) and _is_one(inner, left, right):
                    text = inner.strip()
    return text


def _is_one(inner: str, left: str, right: str) -> bool:
    if left == '$':
        money = MONEY.match(inner)
        return '$' not in (inner[money.end() :] if money else inner).replace('\\$', '')
    return left not in inner and right not in inner


def _delimited(text: str) -> list[re.Match[str]]:
    found = [(match, _content(match)) for match in DELIMITED.finditer(text)]
    return [match for match, content in found if content.isalpha() or not is_prose(content)]


def _content(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def _after(marker: re.Pattern[str], text: str) -> str:
    """Returns what follows the last match of a marker, up to the end of the sentence."""
    ends = [match.end() for match in marker.finditer(text) if _outside(text[: match.start()])]
    rest = next((text[end:].strip() for end in reversed(ends) if re.search(r'[\w\\]', text[end:])), '')
    if rest.startswith(('$', '\\(', '\\[')):
        match = DELIMITED.match(rest)
        if match:
            return _joined(rest, [*DELIMITED.finditer(rest)], first=True)
    return unwrapped(SENTENCE_END.split(rest, 1)[0])


def _outside(before: str) -> bool:
    return before.count('{') <= before.count('}')


def _last_delimited(text: str) -> str:
    found = _delimited(text)
    return _joined(text, found, first=False) if found else ''


def _joined(text: str, found: list[re.Match[str]], first: bool) -> str:
    """Returns the first or the last of what stands between signs, with those that a comma or a word joins to it."""
    chain = [found[0] if first else found[-1]]
    others = found[1:] if first else found[-2::-1]
    for other in others:
        left, right = (chain[-1], other) if first else (other, chain[-1])
        if not BETWEEN.fullmatch(text[left.end() : right.start()]):
            break
        chain.append(other)
    contents = [_content(match) for match in chain]
    return ', '.join(contents if first else contents[::-1])
