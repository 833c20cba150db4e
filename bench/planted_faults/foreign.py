"""Rows in another language than the rest of their file."""

from __future__ import annotations

from bench.planted_faults.faults import Change, Draw, Plant, Way, answer_texts
from bench.planted_faults.sources import (
    ALPACA,
    AMAZON,
    BANKING,
    C4,
    COT,
    DPO,
    DUMMY,
    GSM8K,
    KTO,
    SCITLDR,
    SICK,
    XQUAD,
    with_value,
)  # fmt: skip

_SENTENCES = {
    "German": (
        "Ich habe meine Karte vor zwei Wochen bestellt und sie ist immer noch nicht angekommen.",
        "Könnten Sie mir bitte sagen, warum die Überweisung gestern abgelehnt wurde?",
        "Am Morgen ging sie zum Markt, kaufte frisches Brot und traf dort eine alte Freundin.",
        "Das Wetter war so schlecht, dass wir den ganzen Nachmittag zu Hause geblieben sind.",
    ),
    "French": (
        "J'ai commandé ma carte il y a deux semaines et elle n'est toujours pas arrivée.",
        "Pourriez-vous me dire pourquoi le virement que j'ai fait hier a été refusé ?",
        "Le matin, elle est allée au marché, elle a acheté du pain et elle y a rencontré une vieille amie.",
        "Il faisait si mauvais que nous sommes restés à la maison tout l'après-midi.",
    ),
    "Spanish": (
        "Pedí mi tarjeta hace dos semanas y todavía no ha llegado a mi casa.",
        "¿Me podrían decir por qué rechazaron la transferencia que hice ayer por la tarde?",
        "Por la mañana fue al mercado, compró pan recién hecho y se encontró con una vieja amiga.",
        "Hacía tan mal tiempo que nos quedamos en casa durante toda la tarde.",
    ),
    "Italian": (
        "Ho ordinato la mia carta due settimane fa e non è ancora arrivata a casa.",
        "Potreste dirmi perché il bonifico che ho fatto ieri è stato rifiutato?",
        "La mattina è andata al mercato, ha comprato il pane fresco e ha incontrato una vecchia amica.",
        "Il tempo era così brutto che siamo rimasti in casa per tutto il pomeriggio.",
    ),
    "Russian": (
        "Я заказал карту две недели назад, но она до сих пор не пришла.",
        "Скажите, пожалуйста, почему вчера отклонили мой перевод?",
        "Утром она пошла на рынок, купила свежего хлеба и встретила там старую подругу.",
        "Погода была такая плохая, что мы весь день просидели дома.",
    ),
    "Portuguese": (
        "Pedi o meu cartão há duas semanas e ele ainda não chegou à minha casa.",
        "Podem dizer-me por que razão a transferência que fiz ontem não foi aceite?",
        "De manhã ela foi ao mercado, comprou pão fresco e encontrou lá uma velha amiga.",
        "O tempo estava tão mau que ficámos em casa durante toda a tarde.",
    ),
    "Japanese": (
        "二週間前にカードを注文しましたが、まだ届いていません。",
        "昨日の振り込みがなぜ断られたのか教えていただけますか。",
        "朝、彼女は市場へ行って焼きたてのパンを買い、そこで古い友だちに会いました。",
        "天気がとても悪かったので、午後はずっと家にいました。",
    ),
    "Arabic": (
        "طلبت بطاقتي قبل أسبوعين ولم تصل حتى الآن.",
        "هل يمكنكم أن تخبروني لماذا رفض التحويل الذي أرسلته أمس؟",
        "ذهبت في الصباح إلى السوق واشترت خبزا طازجا والتقت هناك بصديقة قديمة.",
        "كان الطقس سيئا جدا فبقينا في البيت طوال بعد الظهر.",
    ),
}


def _spoken(language: str, *, answer: bool) -> Plant:
    """A short text becomes a sentence of that language, a long one all four."""

    def plant(draw: Draw) -> Change | None:
        texts = answer_texts(draw)[-1:] if answer else draw.source.prompt_texts(draw.values)[:1]
        if not texts:
            return None
        path, text = texts[0]
        sentences = _SENTENCES[language]
        new = " ".join(sentences) if len(text) > 200 else draw.rng.choice(sentences)
        return Change(path, f"in {language}", with_value(draw.values, path, new))

    return plant


def _chinese(draw: Draw) -> Change | None:
    """An answer taken from the same kind of data in Chinese."""
    texts = answer_texts(draw)[-1:]
    if not texts or not draw.foreign:
        return None
    return Change(texts[0][0], "in Chinese", with_value(draw.values, texts[0][0], draw.rng.choice(draw.foreign)))


_ANSWERED = (ALPACA, GSM8K, SCITLDR, COT, C4, DPO, KTO)
_ASKED = (BANKING, SICK, AMAZON, GSM8K, XQUAD, DUMMY, COT)

WRONG_LANGUAGE = (
    Way(_spoken("German", answer=False), _ASKED),
    Way(_chinese, _ANSWERED),
    Way(_spoken("French", answer=True), _ANSWERED),
    Way(_spoken("Spanish", answer=False), _ASKED),
    Way(_spoken("Russian", answer=True), _ANSWERED),
    Way(_spoken("Italian", answer=False), _ASKED),
    Way(_spoken("German", answer=True), _ANSWERED),
    Way(_spoken("Arabic", answer=False), _ASKED),
    Way(_spoken("Spanish", answer=True), _ANSWERED),
    Way(_spoken("Portuguese", answer=False), _ASKED),
    Way(_spoken("Japanese", answer=False), _ASKED),
    Way(_chinese, _ANSWERED),
)

WAYS = {"wrong_language": WRONG_LANGUAGE}
