"""Deterministic captions in many scripts for tests of the tokenizer."""

import numpy as np

WORDS = {
    "english": "a photo of the cat's ball, don't they're I'll we've I'd it's red-blue 24fps snowy",
    "accents": "déjà vu façade über Straße ÅNGSTRÖM naïve señor Łódź Žižek İstanbul ĳsvogel cœur",
    "decomposed": "de\u0301ja\u0300 u\u0308ber A\u030angstro\u0308m n\u0303 \u1e9b\u0323 x\u0323\u0307",
    "cyrillic": "Красный мяч катится вниз по улице ёжик Їжак ЩУКА съёмка",
    "greek": "ένα κόκκινο μπαλάκι κινείται αργά άνθρωπος ϕως θάλασσα Ἀθῆναι",
    "arabic": "كرة حمراء تتحرك إلى اليسار مُحَمَّد ١٢٣ لا",
    "hebrew": "כדור אדום נע שמאלה שָׁלוֹם",
    "devanagari": "एक लाल गेंद बाईं ओर चलती है क्षत्रिय १२३",
    "bengali": "একটি লাল বল বাম দিকে চলে",
    "tamil": "ஒரு சிவப்பு பந்து இடது",
    "thai": "ลูกบอลสีแดง เคลื่อนที่ไปทางซ้าย ๑๒๓ น้ำ",
    "chinese": "一个红色的球 向左移动 龍 𠜎 ，。",
    "japanese": "赤いボール が 左へ 動く がギグ ﾊﾟ ー",
    "hangul": "빨간 공이 왼쪽으로 움직인다 \u1112\u1161\u11ab",
    "georgian": "წითელი ბურთი ᲑᲣᲠᲗᲘ",
    "armenian": "Կարմիր գնդակ եւ և",
    "amharic": "ቀይ ኳስ ወደ ግራ",
    "vietnamese": "một quả bóng đỏ Đường phố ƠƯ",
    "emoji": "😀 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☃ ™ ©",
    "punctuation": "... !!! ?! -- (a) [b] {c} $5.00 50% #tag @you a/b a_b \\ ` ~ ^ <|> \"q\" 'q' --- 1,234",
    "typography": "it’s “quoted” – dash — em… «gut» ‹x› · • № ½ ² ﬁ Ａｂｃ",
    "entities": "&amp; &amp;amp; &lt;b&gt; &quot; &#39; &eacute;t&eacute; &nbsp; &unknown; &#x1F600; &amp;#39;s",
    "digits": "0 12 2024 3.14 Ⅻ ③ ٣٤ 1st 16x9 4K",
    "special": "<|startoftext|> <|endoftext|> a<|endoftext|>b <start_of_text>",
    "mathematics": "∑ ∞ 𝔉𝔯𝔞𝔨 ℝ x²+y² ≈ → µm Ω",
}
SPACES = (" ", " ", " ", " ", "  ", "\t", "\n", "\u00a0", "\u3000", " \r\n ", "\u2009")
CONTROLS = (
    "\u0000",
    "\u0007",
    "\u001b[0m",
    "\u007f",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u00ad",
    "\ufffd",
)


def captions(count=2000):
    """Makes captions in one script, in two, or of random characters of all scripts."""
    rng = np.random.default_rng(0)
    names = list(WORDS)
    letters = sorted(set("".join(WORDS.values())))
    made = ["", " ", "a photo of a cat"]
    while len(made) < count:
        words = [w for name in rng.choice(names, rng.integers(1, 3)) for w in WORDS[name].split()]
        kind = len(made) % 10
        if kind == 0:  # random characters
            made.append("".join(rng.choice(letters, rng.integers(1, 40))))
            continue
        chosen = [str(word) for word in rng.choice(words, rng.integers(1, 40 if kind == 1 else 12))]
        if kind == 2:
            chosen = [word.title() for word in chosen]
        if kind == 3:
            chosen.insert(rng.integers(len(chosen) + 1), str(rng.choice(CONTROLS)))
        made.append("".join(word + str(rng.choice(SPACES)) for word in chosen))
    return made
