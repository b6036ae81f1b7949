"""Texts on which two tokenizers that differ will show it: short, of many kinds, nasty on purpose.

Plain data. A kind's name is what `pre_tokenizers` says llama.cpp deviates on; the texts of a kind are tried one by one,
and then all kinds as one text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# A text with U+FFFD is tried on llama.cpp with the byte 0xFF in its place too, where the tokenizer goes by bytes.
PROBES: Final[Mapping[str, tuple[str, ...]]] = {
    "words": (
        "Hello, world! The quick brown fox (jumps) over 13 lazy dogs; doesn't it?",
        "supercalifragilisticexpialidocious" * 6,
        "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
        "camelCaseHTTPServer snake_case_name kebab-case-name PascalCASE xY Zz",
        "a",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ),
    "contractions": (
        "I'm you're he's we've they'll I'd can't it's 'tis o'clock rock'n'roll",
        "I'M YOU'RE HE'S WE'VE THEY'LL I'D CAN'T 'Re 'vE 'lL 'T",
        "'s't're've'm'll'd '' 'x ' s 'll'll ’s ’re don’t",
        "Ankara'nın İstanbul'da 5'te d'accord l'été",
    ),
    "digits": (
        "0 1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890",
        "3.14159 -2.5e-10 1,000,000 0x1F4A9 2024-02-29T23:59:59Z v1.2.3 a1b22c333d4444",
        "٠١٢٣٤٥٦٧٨٩ ०१२३ 〇一二三 ⅠⅡⅢ ½ ¼ x² y³ ①② 1２3４",
    ),
    "spaces": (
        "a b  c   d    e     f      g       h        i",
        "\t\ttab\tbed \t mixed\t ",
        "line\nline\n\nline\n\n\nline\r\nline\r\n\r\nline\rline \n \n  \n",
        "no\u00a0break thin\u2009space ideographic\u3000space zero\u200bwidth line\u2028sep\u0085next",
        "\n",
        "end with spaces   ",
        "end with lines\n\n",
    ),
    "leading": (
        " leading space and a trailing one ",
        "   \n   x\n\t\ty \n",
        " ",
        "                                                                x",
    ),
    "signs": (
        "!!!??? ... ---- ==== #### //// **bold** __init__ `code` ~~~ $5.00 100% @you #tag a+b=c <=> <|> [^1]",
        "“curly” ‘quotes’ «guillemets» — – … • § ¶ © ® ™ € £ ¥ ¢ ° ± × ÷",
        "(a)[b]{c}<d>;:,.!?\\|/ \"q\" 'q' a.b,c;d:e!f?g -x +y *z &w",
        "====\n----\n////\n!\n\n?/\n",
    ),
    "code": (
        'def f(x: int) -> str:\n    return f"{x!r:>10}"  # comment\n\n\nclass A:\n\tpass\n',
        "for (int i = 0; i < n; ++i) { a[i] += b[i] << 2; } // C++\r\n",
        '{"key": [1, 2.5, null, true], "π": "\\u00e9\\n"}',
        "https://example.com/a%20b?q=1&r=%F0%9F%A6%99#frag user.name+tag@example.co.uk C:\\Users\\x",
    ),
    "scripts": (
        "Ελληνικά Русский язык Українська Հայերեն ქართული ᏣᎳᎩ Ἀχιλλεύς",
        "naïve façade Ærøskøbing Łódź Þórr ǅungla straße ﬁn Ångström",
    ),
    "case": (
        "écoleÉCOLE ÀÉÎ àéîÀÉÎ ЖзЖЗ жзЖЗ ΑβΓδ ŁódźŁÓDŹ",
        "МоскваРоссия iPhoneЁлка aÉb ÉaÉ",
    ),
    "cjk": (
        "我想在apple工作1314151天～ 你好，世界！「引用」、。？",
        "日本語のテキスト、カタカナとひらがな。ｶﾀｶﾅ 東京タワー々〆",
        "한국어 텍스트와 띄어쓰기 ㄱㄴㄷ 가나다라",
        "漢字kanji漢字 𠮷野家 ㄅㄆㄇ",
    ),
    "marks": (
        "हिन्दी में लिखा हुआ पाठ क्षत्रिय",
        "বাংলা তামিল தமிழ் తెలుగు ಕನ್ನಡ മലയാളം",
        "ภาษาไทยไม่มีช่องว่าง កាន់តែពិសេសអាច ພາສາລາວ မြန်မာ བོད་སྐད།",
        "العَرَبِيَّةُ עִבְרִית ܣܘܪܝܝܐ",
        "e\u0301 n\u0303 A\u030a Z\u0351\u036b\u0343a\u0328l\u0360g\u0489o\u0321 q\u0307\u0323 Å",
        "Việt Nam Việt Nam Đặng ngữ pháp",
    ),
    "rtl": (
        "العربية اللغة 123 كتاب، سلام!",
        "עברית שלום 456 \u202eabc\u202c \u200fdef\u200e",
        "فارسی نیم‌فاصله می‌خواهم اردو",
    ),
    "emoji": (
        "🚀 (normal) 😶\u200d🌫️ ✅ 🦙🦙 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 1️⃣ ❤️‍🔥 ☺️☺",
        "a😀b 😀😀😀 ~😀! 🫠🪿",
    ),
    "math": ("∀x∈ℝ: ∑ᵢ₌₁ⁿ xᵢ² ≤ ∫₀^∞ e^{−x²} dx ≈ √π⁄2 ⇒ ¬(p∧q) 𝒜𝔅𝕮 ℵ₀ ∂f/∂x", "αβγ ≠ ΑΒΓ → ⟨ψ|φ⟩ ⊗ ∅"),
    "invalid": ("a\ufffdb", "\ufffd\ufffd c \ufffd", "é\ufffd漢"),
    "controls": ("a\x01b\x07\x1b[31mred\x7f", "\ufeffBOM soft\u00adhyphen \ue000private"),
}


def whole(but: frozenset[str]) -> str:
    """Everything as one text, but for these kinds."""
    return "\n".join(text for kind, texts in PROBES.items() if kind not in but for text in texts)
