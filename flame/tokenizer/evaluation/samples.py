"""Short texts of several kinds, to compare tokenizers where nothing else is at hand. Written for this purpose."""

NEWS = """\
The ferry between the two islands will run again from Monday, the harbour office said on Thursday, after eleven \
weeks in which residents had to fly or stay at home. A cracked shaft had been found during a routine inspection \
in September; the replacement, cast in Gdańsk, weighs 4.2 tonnes and arrived by lorry last week. "We know how \
much patience this has cost," said the operator's spokeswoman, Ingrid Halvorsen, who put the bill at about \
€1.3m. Local hotels reported 38% fewer guests than in the same weeks of 2023. The council, which votes on the \
budget on 12 December, is split over whether to buy a second ship: three members called it overdue, two wanted \
a study first, and the mayor would not say.
"""

KOREAN = """\
오늘 아침 시장에 나가 보니 사과와 배가 지난주보다 조금 싸졌다. 가게 주인은 비가 그치고 햇볕이 좋아서 수확이 \
늘었다고 했다. 나는 사과 다섯 개와 두부 한 모를 사서 집으로 돌아왔다. 점심에는 김치찌개를 끓여 동생과 함께 \
먹었는데, 동생은 조금 맵다고 하면서도 밥을 두 그릇이나 비웠다. 오후에는 도서관에서 2019년에 나온 천문학 책을 \
빌려 읽기 시작했다. 별빛이 우리에게 닿기까지 얼마나 오랜 시간이 걸리는지 생각하니 하루의 걱정이 작게 느껴졌다.
"""

SCRIPTS = """\
Ο γέρος ψαράς έδεσε τη βάρκα του και κοίταξε τη θάλασσα για πολλή ώρα. Старик привязал лодку и долго смотрел на \
море, где уже зажигались огни. صعد الأطفال التلّ قبل الغروب ورأوا المدينة كلها تحتهم. बच्चे शाम को नदी के \
किनारे खेलते हैं और दादी उन्हें कहानियाँ सुनाती है। 朝の電車はいつもより空いていて、窓から雪の山がよく見えた。\
春天来了，院子里的桃花一夜之间全开了。ילדה קטנה מצאה מטבע ישן בחול. ฝนตกตั้งแต่เช้า \
เราจึงอยู่บ้านและอ่านหนังสือ Đêm qua trời mưa rất to nhưng sáng nay đã nắng.
"""

CODE = """\
from collections import Counter
from pathlib import Path


class WordIndex:
    \"\"\"Counts words of files and answers which are the most frequent.\"\"\"

    def __init__(self, root: Path, min_length: int = 3) -> None:
        self.root = root
        self.min_length = min_length
        self._counts: Counter[str] = Counter()

    def add(self, path: Path) -> int:
        words = [word.lower() for word in path.read_text().split() if len(word) >= self.min_length]
        self._counts.update(words)
        return len(words)

    def top(self, n: int = 10) -> list[tuple[str, int]]:
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:n]


if __name__ == "__main__":
    index = WordIndex(Path("."), min_length=4)
    total = sum(index.add(path) for path in Path(".").rglob("*.md"))
    for word, count in index.top(25):
        print(f"{word:<20}{count:>8,}  {100 * count / max(1, total):6.2f}%")
"""

MATHS = r"""
\begin{lemma}\label{lem:bound}
Let $f \colon [0,1] \to \mathbb{R}$ be continuously differentiable with $f(0) = 0$. Then
\[
  \int_0^1 f(x)^2 \, dx \;\le\; \frac{1}{2} \int_0^1 (1 - x^2)\, f'(x)^2 \, dx .
\]
\end{lemma}
\begin{proof}
For $0 \le x \le 1$ we have $f(x) = \int_0^x f'(t)\,dt$, so by Cauchy--Schwarz
$f(x)^2 \le x \int_0^x f'(t)^2\,dt$. Integrating and exchanging the order of integration,
\begin{align*}
  \int_0^1 f(x)^2\,dx &\le \int_0^1 f'(t)^2 \Bigl( \int_t^1 x \,dx \Bigr) dt \\
                      &= \tfrac{1}{2} \int_0^1 (1 - t^2)\, f'(t)^2\,dt . \qedhere
\end{align*}
\end{proof}
"""

SCIENCE = """\
Plants regulate the opening of their stomata by changing the turgor of two guard cells. When light is absorbed \
by phototropins in the plasma membrane, H⁺-ATPases are phosphorylated and protons are pumped out of the cell; \
the membrane hyperpolarises to about −180 mV and K⁺ enters through inward-rectifying channels. Malate²⁻ and Cl⁻ \
follow, the osmotic potential falls by 1–2 MPa, and water flows in. Drought reverses this: abscisic acid binds \
to receptors of the PYR/PYL family, releases the kinase SnRK2.6 from inhibition, and opens anion channels \
within minutes (half-time ≈ 3.5 min at 22 °C). In our measurements stomatal conductance fell from 0.31 ± 0.04 \
to 0.06 ± 0.01 mol m⁻² s⁻¹ (n = 24, p < 0.001).
"""

SAMPLES: dict[str, str] = {
    "news": NEWS,
    "code": CODE,
    "maths": MATHS,
    "science": SCIENCE,
    "Korean": KOREAN,
    "scripts": SCRIPTS,
}
"""Domain -> text."""
