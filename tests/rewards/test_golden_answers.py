r"""Golden answers: each is itself in every form that a response may give it, and no part of it is.

The answers are of the kinds that data sets of mathematics have.
"""

from __future__ import annotations

import pytest

from align_anything.rewards.answers import answer_of
from align_anything.rewards.math_equality import equal
from tests.rewards.common import reward

GOLDEN = r"""
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
\begin{bmatrix}1&0\\0&1\end{bmatrix}
\text{Evelyn}
\text{even}
4210_{5}
11\sqrt{2}
x \in [-2,7]
(-\infty, 2)
\left( 3, \frac{\pi}{2} \right)
\emptyset
\log_2 3
10\%
p - q
5\text{ cm}^2
18.90
2^{10}
\tfrac{1}{2}
y = 2x + 3
x=4
\{1,2,3\}
1,-2
\sqrt[3]{4}
\binom{5}{2}
8\pi
\infty
\text{undefined}
120^\circ
\ln 2
abc
\frac{x+1}{x-1}
3\frac{1}{2}
\max(a,b)
1.5 \times 10^{6}
\gcd(6,4)
True
""".strip().splitlines()
MORE = r"""
\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}
\begin{pmatrix} -1 \\ 2 \\ 0 \end{pmatrix}
\begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}
\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}
\$18.90
$18.90
\$32,500
18.90 dollars
\text{\$}5
\pounds 5
€5
75 cents
33\frac{1}{3}\%
12.5\%
12.5 percent
10 percent
[0,1)
(-\infty, -3] \cup [3, \infty)
(-\infty,1)\cup(1,\infty)
\mathbb{R}
\mathbb{R} \setminus \{1\}
\{1, \frac{1}{2}\}
\{x \mid x > 2\}
\{(1,2),(3,4)\}
(1,2),(3,4)
(1,2,3)
\langle 1, -2, 3 \rangle
(3, -1)
(x, y) = (1, 2)
x = 1, y = 2
x=1 \text{ or } x=-2
2 \text{ and } 3
1011_2
1A3_{16}
(4210)_5
101_{\text{two}}
2\frac{3}{4}
-1\frac{1}{2}
5\frac{1}{2}\text{ hours}
C
\text{C}
\text{(C)}
(C)
'C'
\textbf{(C)}
\text{A and C}
A, C
5\,\text{m/s}
9.8\ \text{m/s}^2
5 \mathrm{~cm}
60 \text{ miles per hour}
3 \text{ square feet}
2 miles
30 degrees
90^{\circ}
25^\circ\text{C}
\pi
\frac{\pi}{6}
e^{2}
2e
i
3+4i
-\frac{3}{4}
\dfrac{3}{4}
0.\overline{3}
0.333\ldots
x^2 + y^2 = 1
x > 3
-2 \le x \le 7
x \neq 3
3:2
12:30
12:30 \text{ p.m.}
\text{Monday}
\text{no solution}
no real solutions
Yes
even function
f(x) = 2x+1
a_n = 2n+1
\frac{n(n+1)}{2}
n!
\sqrt{2}+\sqrt{3}
|x-2|
\lfloor x \rfloor
\sin^2 x
\sin x
\sum_{i=1}^{n} i
\int_0^1 x\,dx
\vec{v}
\overrightarrow{AB}
AB
\triangle ABC
\angle ABC = 30^\circ
\pm 2
3 \pm \sqrt{2}
x = \pm 2
x \equiv 3 \pmod{7}
3 \pmod 7
6.02\times10^{23}
1{,}234
1,234
1,234,567
12,\!345
.5
-5
+5
5!
\frac12
\frac 12
\sqrt2
2^{-3}
a^{b^{c}}
\log_{2}(3)
-\infty
\varnothing
\{\}
\text{none}
P(A \cap B)
\frac{1}{2}, \frac{1}{3}
(0, \infty)
]0,1[
\left[0,\frac{\pi}{2}\right]
\left\{1,2\right\}
2 \times 3
x^2-2x+1
(x-1)^2
(x+1)(x-2)
1:2:3
10^{-3}
0
1
100
7^{th}
3^{\text{rd}}
1/2
3 1/2
50\%
A \cup B
p \land q
H_2O
\text{H}_2\text{O}
k\in\mathbb{Z}
x = k\pi, k \in \mathbb{Z}
(-1)^n
\left(\frac{1}{2}, -3\right)
False
xy
ab^2
""".strip().splitlines()
FORMS = (
    '{}',
    '\\boxed{{{}}}',
    '${}$',
    '\\({}\\)',
    '\\[{}\\]',
    '<answer>{}</answer>',
    '<answer>\\boxed{{{}}}</answer>',
    '<think>It could be 3, or B.</think>\n\nWe get 4, so the answer is $\\boxed{{{}}}$.',
    'The answer is ${}$.',
    'Answer: {}',
    '**{}**',
)
SAME = [
    ('27', 'So the final answer is $27$.'),
    ('27', '3 times 9 is 27'),
    ('She sold 48/2 = <<48/2=24>>24 and 48.\n#### 72', 'Adding up: 72'),
    ('27', '一共有3个，答案是27个。'),
    (r'\frac{1}{2}', '0.5'),
    (r'\frac{1}{2}', '1/2'),
    (r'$2\sqrt{2}$', r'\boxed{\sqrt{8}}'),
    ('x+1', '1+x'),
    ('50%', '1/2'),
    ('50%', '0.5'),
    ('3,000', '3000'),
    ('$x=5$', '5'),
    ('5', 'x = 5'),
    ('72', 'So she has 72 clips altogether.'),
    ('72', '72 clips'),
    ('72', r'The total is \$72.'),
    ('18.90', '$18.90'),
    (r'\$18.90', '18.9 dollars'),
    (r'\$32,500', '$32500'),
    (r'\$32,500', '32500'),
    (r'10\%', '10 percent'),
    (r'12.5\%', '12.5'),
    (r'12.5\%', '0.125'),
    ('0.125', '12.5%'),
    ('25', '25%'),
    (r'5\text{ cm}^2', r'5 \text{ square centimeters}'),
    (r'5\text{ cm}^2', '5 cm^2'),
    (r'5\text{ cm}^2', '5 cm²'),
    ('2 miles', '2 mi'),
    (r'5\text{ m}', '5 m'),
    (r'x \in [-2,7]', '[-2,7]'),
    (r'x \in [-2,7]', r'-2 \le x \le 7'),
    ('[-2,7]', r'-2 \le x \le 7'),
    (r'(-\infty, 2)', 'x < 2'),
    ('x<2', r'(-\infty,2)'),
    ('x<3', '3>x'),
    (r'(-\infty, 2)', '(-inf, 2)'),
    (r'(-\infty,1)\cup(1,\infty)', r'(1,\infty) \cup (-\infty,1)'),
    (r'(-\infty,1)\cup(1,\infty)', r'\mathbb{R}\setminus\{1\}'),
    (r'\{1,2,3\}', r'\{3,2,1\}'),
    (r'\{1,2,3\}', '3, 1, 2'),
    ('1,-2', '-2, 1'),
    ('1,-2', r'-2 \text{ and } 1'),
    ('1,-2', 'x=1 or x=-2'),
    ('1,-2', 'The solutions are $x=1$ and $x=-2$.'),
    ('1,-2', '$1$ and $-2$'),
    (r'\pm 2', '2, -2'),
    ('2,-2', r'x=\pm 2'),
    (r'3 \pm \sqrt{2}', r'3+\sqrt2, 3-\sqrt2'),
    (r'\left( 3, \frac{\pi}{2} \right)', r'(3, \pi/2)'),
    ('(1,2)', r'\left(1, \frac{4}{2}\right)'),
    ('(x, y) = (1, 2)', '(1,2)'),
    ('4210_{5}', '4210_5'),
    ('4210_{5}', '(4210)_5'),
    ('4210_{5}', r'4210 \text{ (base 5)}'),
    ('4210_{5}', '4210 base 5'),
    ('4210_{5}', r'4210_{\text{five}}'),
    ('1A3_{16}', '1a3_{16}'),
    (r'3\frac{1}{2}', '3.5'),
    (r'3\frac{1}{2}', r'\frac{7}{2}'),
    (r'3\frac{1}{2}', '3 1/2'),
    ('3.5', '3 1/2'),
    (r'-1\frac12', '-1.5'),
    ('2^{10}', '1024'),
    (r'1.5 \times 10^{6}', '1500000'),
    (r'1.5 \times 10^{6}', '1.5e6'),
    (r'1.5 \times 10^{6}', '1,500,000'),
    (r'1.5 \times 10^{6}', '1.5*10^6'),
    (r'\binom{5}{2}', '10'),
    (r'\gcd(6,4)', '2'),
    (r'\log_2 3', r'\frac{\ln 3}{\ln 2}'),
    (r'8\pi', '8π'),
    (r'\sqrt[3]{4}', '4^{1/3}'),
    (r'\text{Evelyn}', 'evelyn'),
    (r'\text{Evelyn}', 'The answer is Evelyn.'),
    (r'\text{Evelyn}', 'Answer: **Evelyn**'),
    (r'\text{even}', 'It is even.'),
    (r'\text{undefined}', 'undefined'),
    ('C', "The answer is 'C'"),
    ('C', 'The answer is (C).'),
    (r'\text{(C)}', 'C'),
    ('True', 'true'),
    ('abc', 'bca'),
    ('p - q', '-q+p'),
    (r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}', r'\begin{pmatrix} 1 & \frac{4}{2} \\ 3 & 4 \end{pmatrix}'),
    (r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}', r'\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}'),
    (r'\frac{x+1}{x-1}', r'\frac{1+x}{x-1}'),
    ('(x-1)^2', 'x^2-2x+1'),
    ('y = 2x + 3', 'y=3+2x'),
    ('y = 2x + 3', '2x+3'),
    ('x^2+y^2=1', 'y^2+x^2=1'),
    (r'120^\circ', '120 degrees'),
    ('0.333333', r'\frac{1}{3}'),
    (r'\frac{1}{3}', '0.333333'),
    ('27', r'3 \cdot 9 = 27'),
    (r'\emptyset', r'\varnothing'),
    (r'\emptyset', r'\{\}'),
    (r'\frac{3}{4}', '.75'),
    ('1e-9', '0.000000001'),
    (r'\frac{\pi}{6}', r'\pi/6'),
    ('10', '$10$ apples'),
    (r'\infty', 'infinity'),
    ('-1', '$-1$'),
    ('6', 'The value of $x^2$ is $6$'),
    ('4', '$x = 2+2 = 4$'),
    ('5', '2x = 10, so x = 5'),
    ('$27$', r'<answer> \boxed{27} </answer>'),
    ('12', 'Therefore, there are 12 ways.'),
    ('(0,1)', 'The point is (0, 1).'),
    ('7', 'It costs $7 in total'),
    ('7', '7 dollars'),
    ('42', '**Answer:** 42'),
    ('42', '### Final Answer\n42'),
    ('42', 'Final answer:\n\\[\n42\n\\]'),
    ('1/2', r'The probability is \frac{1}{2}.'),
]
OTHERS = [
    ('$27$', '28'),
    (r'\frac{1}{2}', '2'),
    (r'2\sqrt{3}', '2'),
    ('x+1', '1'),
    ('-5', '5'),
    ('27', r'\frac{'),
    ('27', ''),
    ('18.90', '18'),
    (r'\$18.90', '€18.90'),
    (r'5\text{ cm}^2', r'5\text{ m}^2'),
    (r'5\text{ cm}^2', r'5\text{ cm}'),
    (r'5\text{ cm}^2', '2'),
    (r'10\%', '0.01'),
    (r'10\%', '100'),
    ('[-2,7]', '(-2,7)'),
    ('[-2,7]', '-2,7'),
    ('(1,2)', '(2,1)'),
    ('(1,2)', '1,2'),
    ('(1,2)', '[1,2]'),
    (r'\{1,2\}', '(1,2)'),
    (r'\{1,2,3\}', r'\{1,2\}'),
    ('1,-2', '1'),
    ('1,-2', '1,2'),
    (r'(-\infty, 2)', '2'),
    (r'(-\infty, 2)', r'(-\infty, 2]'),
    (r'x \in [-2,7]', r'y \in [-2,7]'),
    ('x=4', 'y=4'),
    ('4210_{5}', '4210'),
    ('4210_{5}', '555'),
    ('4210_{5}', '4210_6'),
    ('4210', '4210_5'),
    (r'3\frac{1}{2}', '3'),
    (r'3\frac{1}{2}', r'\frac{1}{2}'),
    (r'3\frac{1}{2}', r'\frac{3}{2}'),
    (r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}', '4'),
    (r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}', r'\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}'),
    (r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}', r'\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}'),
    (r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}', r'\begin{pmatrix} 1 & 2 \end{pmatrix}'),
    (r'\text{Evelyn}', 'Eve'),
    (r'\text{even}', 'The number is not even'),
    (r'\text{even}', 'odd'),
    (r'\text{even}', 'even or odd'),
    ('C', 'The answer is A or C'),
    ('C', 'D'),
    ('p - q', 'q - p'),
    ('p - q', 'p'),
    ('y = 2x + 3', '3'),
    ('y = 2x + 3', '2x'),
    (r'\binom{5}{2}', '5'),
    (r'\max(a,b)', 'a,b'),
    (r'\max(a,b)', '(a,b)'),
    (r'\gcd(6,4)', '(6,4)'),
    ('1e-9', '2e-9'),
    ('0.0000001', '0.0000002'),
    ('x<3', 'x>3'),
    ('x<3', r'x \le 3'),
    ('x<3', '3'),
    (r'\infty', r'-\infty'),
    ('2^{10}', '2^{11}'),
    ('27', '27 or 28'),
    ('27', 'It is 27 or 28'),
    ('27', '26, 27'),
    (r'\emptyset', '0'),
    (r'8\pi', '8'),
    (r'120^\circ', r'120^\circ\text{C}'),
    ('25', '2^{5'),
    ('True', 'False'),
    ('no solution', 'solution'),
    ('2', 'x_2'),
    ('2', 'x^2'),
    ('2', r'11\sqrt{2}'),
    ('x^2+y^2=1', '1'),
    ('1', r'\{1,2\}'),
    (r'\frac{1}{3}', '0.3'),
    (r'\frac{1}{3}', '0.333'),
    ('2xy', '2'),
    ('5x', '5'),
    ('3:2', '3'),
    ('3:2', '2:3'),
    ('12:30', '12'),
]
PARTS = {
    r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}': ['1', '4', '1 & 2', '1, 2, 3, 4', '(1, 2)', '-2'],
    r'\begin{bmatrix}1&0\\0&1\end{bmatrix}': ['1', '0', '(1, 0)'],
    r'\text{Evelyn}': ['E', 'Eve', 'lyn'],
    r'\text{even}': ['e', 'eve', 'odd'],
    r'4210_{5}': ['5', '4210', '4', '555'],
    r'11\sqrt{2}': ['11', '2', r'\sqrt{2}'],
    r'x \in [-2,7]': ['x', '-2', '7', '-2, 7'],
    r'(-\infty, 2)': ['2', r'-\infty', r'\infty', r'-\infty, 2'],
    r'\left( 3, \frac{\pi}{2} \right)': ['3', '2', r'\pi', r'\frac{\pi}{2}', r'3, \frac{\pi}{2}'],
    r'\emptyset': ['0', r'\{0\}'],
    r'\log_2 3': ['2', '3', r'\log 3'],
    r'10\%': ['1', '0', r'\%'],
    r'p - q': ['p', 'q', '-q'],
    r'5\text{ cm}^2': ['2', 'cm', r'\text{cm}^2', '25'],
    r'18.90': ['18', '90', '0.9', '1890'],
    r'2^{10}': ['2', '10'],
    r'\tfrac{1}{2}': ['1', '2'],
    r'y = 2x + 3': ['y', '2x', '3', 'x', '2'],
    r'x=4': ['x', '-4'],
    r'\{1,2,3\}': ['1', '3', '1, 2', '(1, 2, 3)'],
    r'1,-2': ['1', '-2', '2'],
    r'\sqrt[3]{4}': ['3', '4', r'\sqrt{4}'],
    r'\binom{5}{2}': ['5', '2', '(5, 2)'],
    r'8\pi': ['8', r'\pi'],
    r'\infty': ['0', r'-\infty'],
    r'\text{undefined}': ['defined', 'un', '0'],
    r'120^\circ': ['12', '0', r'\circ'],
    r'\ln 2': ['2', 'e'],
    r'abc': ['a', 'b', 'c', 'ab'],
    r'\frac{x+1}{x-1}': ['x+1', 'x-1', '1', 'x', '-1'],
    r'3\frac{1}{2}': ['3', '1', '2', r'\frac{1}{2}', r'\frac{3}{2}'],
    r'\max(a,b)': ['a', 'b', 'a, b', '(a,b)'],
    r'1.5 \times 10^{6}': ['1.5', '10', '6', r'10^{6}'],
    r'\gcd(6,4)': ['6', '4', '6, 4', '(6, 4)'],
    r'True': ['T', 'rue', 'False'],
}


@pytest.mark.parametrize('golden', [*GOLDEN, *MORE])
def test_each_is_itself_in_every_form(golden: str) -> None:
    missed = [form for form in FORMS if not equal(golden, answer_of(form.format(golden)))]
    assert not missed


@pytest.mark.parametrize('golden', GOLDEN)
def test_no_part_of_it_is_the_whole(golden: str) -> None:
    given = [(part, form) for part in PARTS[golden] for form in FORMS if equal(golden, answer_of(form.format(part)))]
    assert not given


@pytest.mark.parametrize(('golden', 'answer'), SAME)
def test_what_means_the_same(golden: str, answer: str) -> None:
    assert equal(golden, answer_of(answer))


@pytest.mark.parametrize(('golden', 'answer'), OTHERS)
def test_what_means_something_else(golden: str, answer: str) -> None:
    assert not equal(golden, answer_of(answer))


def test_the_reward_is_that_of_the_comparison() -> None:
    matrix = r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}'
    assert [reward('math', response, matrix) for response in (matrix, f'<answer>{matrix}</answer>', '4')] == [1, 1, 0]
