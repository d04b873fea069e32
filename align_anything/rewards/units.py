"""Numbers with units, as answers have them: `5 cm^2`, `$18.90`, `10 percent`, `120^\\circ`."""

from __future__ import annotations

import re

from align_anything.rewards.final_answer import FUNCTIONS, SHORT_WORDS, WRAPPED

CURRENCY = {'$': 'dollar', '€': 'euro', '£': 'poundsterling', '¥': 'yen', '₹': 'rupee'}
UNFINISHED = ('+', '-', '=', '(', '_')
PERCENT, DEGREE = '%', 'degree'
NAMES = {
    name: unit
    for unit, names in {
        'mm': 'millimeter millimetre',
        'cm': 'centimeter centimetre',
        'm': 'meter metre',
        'km': 'kilometer kilometre',
        'in': 'inch inche',
        'ft': 'foot feet',
        'yd': 'yard',
        'mi': 'mile',
        'mg': 'milligram',
        'g': 'gram gm',
        'kg': 'kilogram kilo',
        'lb': 'lbs pound',
        'oz': 'ounce',
        'ml': 'milliliter millilitre',
        'l': 'liter litre',
        's': 'second sec',
        'min': 'minute mins',
        'h': 'hour hr hrs',
        'mi/h': 'mph',
        'km/h': 'kph kmh kmph',
        'dollar': 'usd buck',
        'cent': '¢',
        'euro': 'eur',
        'rupee': 'rs inr',
        'degree': 'deg',
        '%': 'percent percentage pct',
    }.items()
    for name in (unit, *names.split())
}
MONEY = re.compile(r'([-+]?)\s*([$€£¥₹])\s*(.+)', re.DOTALL)
ANGLE = re.compile(r'(.+?)\s*\^\\circ\s*(?:\\(?:text|mathrm)\s*\{\s*)?([CFK]?)\s*\}?', re.DOTALL)
SHARE = re.compile(r'(.+?)\s*\\%', re.DOTALL)
POWER = r'(?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?'
WRITTEN_OUT = re.compile(
    rf'(.+?)\s*((?:\\(?:text[a-z]*|mathrm|mbox)\s*\{{[^{{}}]*\}}{POWER}\s*(?:/|\\cdot(?![A-Za-z]))?\s*)+)', re.DOTALL
)
PLAIN = re.compile(rf'([-+]?[\d.,\s]*\d(?:\s*/\s*\d+)?|.*[}})])(\s*)([A-Za-zµ][A-Za-zµ ./]*{POWER})', re.DOTALL)


def quantity(text: str) -> tuple[str, str]:
    """Returns the value and the unit of a number with a unit; the text itself and no unit for anything else."""
    money = MONEY.fullmatch(text)
    if money:
        value, unit = quantity(money[3].strip())
        return f'{money[1]}{value}', CURRENCY[money[2]] if unit in ('', CURRENCY[money[2]]) else f'{money[2]}{unit}'
    share = SHARE.fullmatch(text)
    if share:
        return share[1], PERCENT
    angle = ANGLE.fullmatch(text)
    if angle:
        return angle[1], DEGREE + angle[2].lower()
    written = WRITTEN_OUT.fullmatch(text)
    if (
        written
        and re.search(r'[\dA-Za-z}]', written[1])
        and not written[1].rstrip().endswith(('+', '-', '=', '(', '_'))
    ):
        unit = _unit(WRAPPED.sub(r'\1', written[2]))
        return (written[1], unit) if unit else (text, '')
    plain = PLAIN.fullmatch(text)
    if plain and _is_unit(plain[3], apart=bool(plain[2])):
        return plain[1].strip(), _unit(plain[3])
    return text, ''


def _is_unit(text: str, apart: bool) -> bool:
    """Whether letters behind a number are a unit and no variables: `5 cm` and `5 apples`, but not `5xy`."""
    words = [word for word in re.findall(r'[A-Za-zµ]+', text) if word.lower() != 'per']
    known = all(_singular(word) in NAMES and len(word) > 1 for word in words)
    return known or apart and all(len(word) > 3 or word.lower() in NAMES for word in words)


def _unit(text: str) -> str:
    """Returns a unit in one way of writing it, such as `cm^2` for `square centimeters`; '' for what is no unit."""
    text = re.sub(r'\\cdot', '*', re.sub(r'[{}\s]+', ' ', text.lower())).strip(' .')
    text = re.sub(r'\s*\bper\b\s*|\s*/\s*', '/', re.sub(r'\s*\^\s*', '^', text))
    text = re.sub(
        r'\b(?:square|sq)\b\.?\s*([a-zµ]+)', r'\1^2', re.sub(r'\b(?:cubic|cu)\b\.?\s*([a-zµ]+)', r'\1^3', text)
    )
    words = re.findall(r'[a-zµ]+', text)
    if not words or any(word in SHORT_WORDS - {'in'} or word in FUNCTIONS for word in words):
        return ''
    return re.sub(r'[a-zµ¢]+', lambda found: NAMES.get(_singular(found[0]), _singular(found[0])), text).replace(' ', '')


def _singular(word: str) -> str:
    word = word.lower()
    return word[:-1] if len(word) > 3 and word.endswith('s') and not word.endswith('ss') else word
