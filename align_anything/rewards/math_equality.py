r"""Whether two answers are the same: as text, as numbers with units, as lists, sets and intervals, or by math-verify.

An answer is compared as a whole. What math-verify would forgive too much of is taken apart here: brackets, the order of
coordinates, bases, units. Formulas themselves are read by latex2sympy2_extended and compared by math-verify.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import And, Basic, Expr, Float, MatrixBase, Set, Tuple
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanAtom

from align_anything.rewards.final_answer import (
    WRAPPED,
    given_answer,
    golden_answer,
    is_prose,
    marked,
    stated,
    unwrapped,
)
from align_anything.rewards.units import PERCENT, quantity

CONFIG = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed='none')
LONGEST, LAST_CHARACTERS = 2000, 10_000
MOST_ELEMENTS = 50
DEEPEST = 5
TIDIED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r'\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits)(?![A-Za-z])\s*\.?', ''),
        (r'(?<=\d)\\,(?=\d{3}(?!\d))', ','),
        (r'(?<!\\)\\[,;:!]|\\q?quad(?![A-Za-z])|(?<!\\)~', ' '),
        (r'(?<!\\)\\ ', ' '),
        (r'\\[dtc]frac(?![A-Za-z])', r'\\frac'),
        (r'\{\s*,\s*\}', ','),
        (r'\\text\s*\{\s*,?\s*(?:and|or)\s*\}|,?\s+(?:and|or)\s+', ','),
        (r'\\(?:lbrace)(?![A-Za-z])', r'\\{'),
        (r'\\(?:rbrace)(?![A-Za-z])', r'\\}'),
        (r'\\(?:leq|leqslant)(?![A-Za-z])|≤|<=', r'\\le '),
        (r'\\(?:geq|geqslant)(?![A-Za-z])|≥|>=', r'\\ge '),
        (r'−|–', '-'),
        (r'×', r'\\times '),
        (r'·|⋅', r'\\cdot '),
        (r'÷', r'\\div '),
        (r'\*\*', '^'),
        (r'(?<=\d)\s*x\s*(?=10\s*\^)', r'\\times '),
        (r'(?<=\d)\s+i(?![A-Za-z])', 'i'),
        (r'(?<![\\A-Za-z{])((?:arc)?(?:sin|cos|tan)|ln|log|exp|pi)(?![A-Za-z])', r'\\\1 '),
        (r'(?i:\b([ap])\.\s?m\b\.?)', r'\1m'),
        (r'π', r'\\pi '),
        (r'∪', r'\\cup '),
        (r'∩', r'\\cap '),
        (r'∈', r'\\in '),
        (r'∅|\\varnothing(?![A-Za-z])', r'\\emptyset '),
        (r'±', r'\\pm '),
        (r'√\s*(\w+)', r'\\sqrt{\1}'),
        (r'²', '^2'),
        (r'³', '^3'),
        (r'∞|(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])', r'\\infty '),
        (r'\\langle(?![A-Za-z])', '⟨'),
        (r'\\rangle(?![A-Za-z])', '⟩'),
        (r'\\\{\s*\\\}', r'\\emptyset '),
        (r'\\degree(?![A-Za-z])|°|\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])', r'^\\circ '),
        (r'(?<!\\)%', r'\\%'),
        (r'\\\$', '$'),
        (r'(?<![\w.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.])', r'\1\\frac{\2}{\3}'),
        (r'(?<![\w.,}])\.(?=\d)', '0.'),
        *(
            (rf'(?<=\d)\s*(\\text\s*\{{)?\s*{word}(?![a-z])(?(1)\s*([^}}]*)\}})', rf'\\times 10^{{{zeros}}} \2')
            for word, zeros in (('thousand', 3), ('million', 6), ('billion', 9), ('trillion', 12))
        ),
        (r'\^\s*(-\s*\d+|\d+\.\d+)', r'^{\1}'),
        (r'\(\s*-\s*\\infty\s*,\s*\+?\\infty\s*\)', r'\\mathbb{R}'),
        (r'\\l?c?dots(?![A-Za-z])|…|\.\.\.', r'\\ldots '),
        (r'(?<=\d)[eE]([-+]?\d+)(?![\w.])', r'\\times 10^{\1}'),
    )
)
THOUSANDS = re.compile(r'[-+]?\$?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?:\D.*)?')
COMMA, CUP = re.compile('[,;]'), re.compile(r'\\cup(?![A-Za-z])')
UNORDERED = ('', '{}')
# Open intervals as they are written in France.
TURNED = re.compile(r'([\[\]])([^\[\]()]*,[^\[\]()]*)([\[\]])')
DIGITS = 6
RATIO = re.compile(r'[\d.]+(?:\s*:\s*[\d.]+){2,}')
DATE = re.compile(r'\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4}')
RELATION = re.compile(r'[<>]|\\(?:le|ge|lt|gt|ne|neq)(?![A-Za-z])')
ASSIGNED = re.compile(
    r'((?:\\?[A-Za-z]+|\([A-Za-z]+(?:\s*,\s*[A-Za-z]+)*\))(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z](?:\s*,\s*[A-Za-z])*\))?)'
    r'\s*(=|\\in(?![A-Za-z])|\\approx(?![A-Za-z]))\s*(.+)',
    re.DOTALL,
)
BASES = {
    word: number
    for number, word in enumerate(
        'two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen'.split(), 2
    )
}
BASED = re.compile(
    r'\(?([0-9][0-9A-Za-z\s]*|[A-F]+[0-9][0-9A-F]*)\)?\s*'
    r'(?:_\s*\{?\s*(?:\\text\{)?\s*(?:base\s*)?(\d{1,2}|[a-z]+)\s*\}{0,2}'
    r'|\s*(?:\\text\{\s*)?\(?\s*base\s+(\d{1,2}|[a-z]+)\s*\)?\s*\}?)'
)


class Unreadable(ValueError):
    """A text that is no mathematics."""


def equal(golden: str, answer: str) -> bool:
    """Returns whether the answer that a response comes to, in the last of its characters, is the golden one."""
    wanted = golden_answer(golden)
    whole = marked(answer[-LAST_CHARACTERS:])
    as_it_stands = [_plain(_tidy(text)) for text in (whole, stated(whole))]
    return _plain(_tidy(wanted)) in as_it_stands or _same(wanted, given_answer(answer[-LAST_CHARACTERS:]))


def _same(golden: str, answer: str, depth: int = 0) -> bool:
    """Whether two answers are the same, each without signs of mathematics around it."""
    golden, answer = _tidy(golden), _tidy(answer)
    if not golden or not answer:
        return False
    if _plain(golden) == _plain(answer):
        return True
    if depth > DEEPEST or max(len(golden), len(answer)) > LONGEST or _is_text(golden):
        return False
    if ('\\ldots' in golden) != ('\\ldots' in answer):
        return False
    golden_name, golden = _assigned(golden)
    answer_name, answer = _assigned(answer)
    if golden_name and answer_name and _plain(golden_name) != _plain(answer_name):
        return False
    if depth == 0 and '=' in answer and '=' not in golden and len(_pieces(answer)) == 1:
        answer = answer.rpartition('=')[2].strip()  # what a calculation comes to
    ratios = [text.split(':') for text in (golden, answer) if RATIO.fullmatch(text)]
    if ratios:
        return len(ratios) == 2 and _proportional(*ratios)
    bases = [BASED.fullmatch(text) for text in (golden, answer)]
    if any(bases):
        return all(bases) and _digits(bases[0]) == _digits(bases[1])
    unions = [_pieces(text, CUP) for text in (golden, answer)]
    if max(map(len, unions)) > 1:
        unions = [_pieces(union[0]) if RELATION.search(union[0]) else union for union in unions]
        return _matched(*unions, depth) or _formula(golden, answer)
    groups = [_group(text) for text in (golden, answer)]
    if any(groups):
        return _same_groups(groups, golden, answer, depth)
    return _same_quantity(golden, answer)


def _proportional(golden: Sequence[str], answer: Sequence[str]) -> bool:
    """Whether ratios of several numbers are the same."""
    parts = [[rf'\frac{{{number}}}{{{numbers[0]}}}' for number in numbers] for numbers in (golden, answer)]
    return len(golden) == len(answer) and all(_formula(*pair) for pair in zip(*parts, strict=True))


def _same_groups(groups: Sequence[tuple[str, list[str]] | None], golden: str, answer: str, depth: int) -> bool:
    """Whether lists, sets, intervals and coordinates are the same: in their brackets, and, but in sets, their order."""
    kinds = [group[0] if group else '' for group in groups]
    elements = [group[1] if group else [text] for group, text in zip(groups, (golden, answer), strict=True)]
    if None in groups and RELATION.search(golden if groups[0] is None else answer):
        return _formula(golden, answer)
    if all(kind in UNORDERED for kind in kinds):
        return _matched(*elements, depth)
    return (
        kinds[0] == kinds[1]
        and len(elements[0]) == len(elements[1]) <= MOST_ELEMENTS
        and all(_same(*pair, depth + 1) for pair in zip(*elements, strict=True))
    )


def _matched(golden: Sequence[str], answer: Sequence[str], depth: int) -> bool:
    """Whether each of the one is one of the other, in any order."""
    if len(golden) != len(answer) or len(golden) > MOST_ELEMENTS:
        return False
    left = list(answer)
    for one in golden:
        found = next((number for number, other in enumerate(left) if _same(one, other, depth + 1)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_quantity(golden: str, answer: str) -> bool:
    """Whether numbers with units are the same. A unit that one of them leaves out is forgiven, another one is not."""
    (wanted, wanted_unit), (given, given_unit) = quantity(golden), quantity(answer)
    if wanted_unit and not given_unit and _plain(answer).endswith(wanted_unit):
        given, given_unit = answer.rstrip()[: -len(wanted_unit)], wanted_unit
    if wanted_unit and given_unit:
        return wanted_unit == given_unit and _formula(wanted, given)
    if PERCENT in (wanted_unit, given_unit):
        hundredth = '\\frac{%s}{100}'
        share = (hundredth % wanted, given) if wanted_unit else (wanted, hundredth % given)
        return _formula(wanted, given) or _formula(*share)
    return _formula(wanted, given)


def _formula(golden: str, answer: str) -> bool:
    """Whether math-verify finds two formulas equal that are of one kind."""
    try:
        wanted, given = _read(golden), _read(answer)
    except Unreadable:
        return False
    kinds = [[isinstance(each, kind) for kind in (MatrixBase, (Set, Tuple), BooleanAtom)] for each in (wanted, given)]
    relations = [_is_relation(each) for each in (wanted, given)]
    if kinds[0] != kinds[1] and not (any(relations) and kinds[0][1] + kinds[1][1]):
        return False
    if relations[0] != relations[1] and not kinds[0][1] and not kinds[1][1]:
        return False
    if _apart(wanted, given):
        return False
    return verify(
        [wanted],
        [given],
        float_rounding=_decimals(wanted),
        allow_set_relation_comp=True,
        timeout_seconds=None,
    )


def _read(text: str) -> Basic | MatrixBase:
    try:
        return latex2sympy(
            normalize_latex(text, CONFIG),
            is_real=not should_treat_as_complex(text),
            normalization_config=None,
        )
    except MemoryError:
        raise
    except Exception as error:  # latex2sympy raises plain Exceptions.
        raise Unreadable(text) from error


def _is_relation(value: Basic | MatrixBase) -> bool:
    return isinstance(value, (Relational, And))


def _decimals(value: Basic | MatrixBase) -> int:
    """Returns the number of decimals to compare: six digits of what is below 1."""
    if isinstance(value, Float) and value != 0:
        return DIGITS + max(0, -math.floor(math.log10(abs(value))) - 1)
    return DIGITS


def _apart(wanted: Basic | MatrixBase, given: Basic | MatrixBase) -> bool:
    """Whether two numbers differ in their first digits; math-verify takes all below 1e-15 for one."""
    if not all(isinstance(each, Expr) and each.is_number and each.is_finite for each in (wanted, given)):
        return False
    size, difference = abs(complex(wanted)), abs(complex(wanted) - complex(given))
    return size > 0 and difference > size * 10 ** (1 - DIGITS)


def _tidy(text: str) -> str:
    """Returns LaTeX in one way of writing what looks the same."""
    if len(text) > LONGEST:
        return text.strip()
    for pattern, replacement in TIDIED:
        text = pattern.sub(replacement, text)
    text = unwrapped(re.sub(r'\s+', ' ', text))
    wrapped = WRAPPED.fullmatch(text)
    if wrapped and re.search(r'\d', wrapped[1]):
        text = wrapped[1].strip()
    while text.startswith('{') and text.endswith('}') and _balanced(text[1:-1]):
        text = text[1:-1].strip()
    return text


def _plain(text: str) -> str:
    """Returns text to compare letter for letter: without commands that only set type, and spaces that mean nothing."""
    text = WRAPPED.sub(r'\1', text)
    text = re.sub(r'\{(\w)\}', r'\1', re.sub(r'\s+', ' ', text))
    text = re.sub(r'(?<![\w]) | (?![\w])', '', text.lstrip(' \'"').rstrip(' .,;:\'"'))
    letter = re.fullmatch(r'\(([A-Za-z])\)', text)
    return (letter[1] if letter else text).casefold()


def _is_text(golden: str) -> bool:
    """Whether a golden answer is words, or a date. A few letters may be a product."""
    if DATE.fullmatch(golden):
        return True
    bare = WRAPPED.sub(r' \1 ', quantity(golden)[0])
    if bare == golden and re.fullmatch(r'[a-z]{2,4}', golden):
        return False
    return is_prose(bare.strip())


def _assigned(text: str) -> tuple[str, str]:
    """Returns the variable and the value of `x = 5` or `x \\in S`; no variable and the text for anything else."""
    found = ASSIGNED.fullmatch(text)
    if found is None or len(_pieces(text)) > 1 or RELATION.search(found[3]):
        return '', text
    return found[1], found[3].rpartition('=')[2].strip()


def _digits(based: re.Match[str]) -> tuple[str, str]:
    base = based[2] or based[3]
    return based[1].replace(' ', '').lstrip('0').upper(), str(BASES.get(base, base))


def _group(text: str) -> tuple[str, list[str]] | None:
    """Returns the brackets around a text, and its elements; no brackets of a bare list, None for what is one thing."""
    turned = TURNED.fullmatch(text)
    if turned:
        return ('[' if turned[1] == '[' else '(') + (']' if turned[3] == ']' else ')'), _pieces(turned[2])
    if text.startswith('\\{') and text.endswith('\\}') and _balanced(text[2:-2]):
        return '{}', _pieces(text[2:-2])
    if text[0] in '([⟨' and text[-1] in ')]⟩' and _balanced(text[1:-1]):
        elements = _pieces(text[1:-1])
        return (text[0] + text[-1], elements) if len(elements) > 1 else _group(elements[0]) if elements else None
    if text.count('\\pm') == 1:
        return '', [text.replace('\\pm', sign) for sign in '+-']
    elements = _pieces(text)
    return ('', elements) if len(elements) > 1 and not THOUSANDS.fullmatch(text) else None


def _pieces(text: str, separator: re.Pattern[str] = COMMA) -> list[str]:
    """Returns what stands between separators, those in brackets left alone."""
    if '\\begin' in text:
        return [text]
    depth, start, pieces, position = 0, 0, [], 0
    while position < len(text):
        found = separator.match(text, position) if depth == 0 else None
        if found:
            pieces.append(text[start : found.start()])
            start = position = found.end()
            continue
        depth += (text[position] in '([{⟨') - (text[position] in ')]}⟩')
        position += 1
    return [piece.strip() for piece in (*pieces, text[start:]) if piece.strip()]


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in '([{⟨') - (character in ')]}⟩')
        if depth < 0:
            return False
    return depth == 0
