"""What customers write around a complaint: openings, order numbers, cues of urgency, asides that mislead, endings.

`{other}` is a product that the ticket is not about; the other slots are filled with what is drawn for each ticket. Only
the cues of `URGENT` and `PATIENT` say how urgent a ticket is, and only `{order}` gives an order number: all other
numbers are there to mislead.
"""

from __future__ import annotations

from typing import Literal

from luthier.data.ticket_complaints import Category, Tone

Urgency = Literal["low", "normal", "high"]

GREETINGS: dict[Tone, tuple[str, ...]] = {
    "polite": ("Hello,", "Good morning,", "Dear support team,", "Hi there,", "Good afternoon,", "Dear Sir or Madam,"),
    "angry": ("Listen,", "To whoever reads this:", "Hello?!", "Support,", "So,"),
    "terse": ("Hi.", "Hello.", ""),
    "rambling": ("Hello everyone,", "Hi, it is me again,", "Dear all,", "Hello from {town},", "Good day from {town},"),
    "broken": ("Hello dear support,", "Good day,", "Hello my friends,", "Dear Sirs,", "Hello, sorry for my English,"),
}

OPENINGS: dict[Tone, tuple[str, ...]] = {
    "polite": (
        "I hope you are well.",
        "Thank you for your good work so far.",
        "I hope this is the right place to ask.",
        "Thank you for taking the time.",
        "I am sorry to bother you.",
        "",
        "",
        "",
    ),
    "angry": (
        "I have had enough.",
        "This is beyond a joke!",
        "I am really disappointed in you.",
        "What kind of shop is this?",
        "Does anyone there do their job?",
        "Unbelievable.",
        "I am fed up with this.",
        "",
        "",
    ),
    "terse": ("",),
    "rambling": (
        "I have been a customer since {year}, when my brother told me about your shop.",
        "You may remember me, I called in {month} about something else, which was solved nicely.",
        "My neighbour, who knows about these things, said that I should write to you.",
        "It has been raining here in {town} all week, so I finally found time to write.",
        "I told my daughter about it on Sunday and she said that I had to write to you.",
        "I am not a technical person, as you will notice, but I try.",
        "",
    ),
    "broken": (
        "I write you because I have a problem.",
        "Please to excuse my English.",
        "I am customer from {town}.",
        "I have one question for you.",
        "I am living in {town} since {year}.",
        "",
        "",
    ),
}

ORDERS: dict[Tone, tuple[str, ...]] = {
    "polite": (
        "My order number is {order}.",
        "The order is {order}.",
        "You will find it under order {order}.",
        "For your records: order {order}.",
        "It concerns order {order}.",
    ),
    "angry": (
        "Order {order}, look it up!",
        "The order is {order}, as I have told you before.",
        "It is order {order}, in case anyone cares.",
        "Order number {order}.",
    ),
    "terse": ("Order {order}.", "Order no. {order}.", "Order: {order}", "Ref. order {order}."),
    "rambling": (
        "I wrote the order number down somewhere, here it is: {order}.",
        "The paper that came with it says order {order}, if that helps.",
        "My order, I think this is the number, was {order}.",
        "The order number, and I had to put on my glasses to read it, is {order}.",
    ),
    "broken": (
        "Number of my order is {order}.",
        "The order it is {order}.",
        "My order have number {order}.",
        "Order number: {order}.",
    ),
}

NO_ORDER: dict[Tone, tuple[str, ...]] = {
    "polite": ("Unfortunately I cannot find the order number.", "", ""),
    "angry": ("No, I do not have the order number at hand.", "", ""),
    "terse": ("No order number.", "", ""),
    "rambling": ("The order number must be on a paper that I threw away.", "", ""),
    "broken": ("I not have the order number, sorry.", "", ""),
}

URGENT: dict[Tone, tuple[str, ...]] = {
    "polite": (
        "This is urgent for me, as I need it settled by tomorrow.",
        "Could you please answer today? It is urgent.",
        "I am afraid that I need a solution today.",
        "I would be grateful for help before tomorrow morning, it is urgent.",
        "Please treat this as urgent.",
    ),
    "angry": (
        "I want this fixed TODAY.",
        "Fix it right now!",
        "You have until tomorrow morning.",
        "This is urgent, so move!",
        "Not one more day of this: I want it solved today.",
    ),
    "terse": ("Urgent.", "Need this today.", "Right now please.", "ASAP please.", "Needed by tomorrow."),
    "rambling": (
        "I do not like to push people, but this one is urgent, I need it by tomorrow.",
        "My sister visits tomorrow and it has to be settled before she comes.",
        "Normally I have patience, but today I need an answer right away.",
        "It is rather urgent, I have to say.",
    ),
    "broken": (
        "It is very urgent for me, please.",
        "I need it for tomorrow, is urgent.",
        "Please answer today, I need it.",
        "Please very fast, it is urgent.",
    ),
}

PATIENT: dict[Tone, tuple[str, ...]] = {
    "polite": (
        "There is no rush at all.",
        "Please take your time.",
        "It can easily wait until next month.",
        "Whenever you find the time is fine with me.",
        "This has low priority for me.",
    ),
    "angry": (
        "Take your time, but it is annoying.",
        "It can wait a week or two, but not for ever.",
        "No hurry, but do it properly for once.",
        "There is no rush, but I do expect an answer.",
    ),
    "terse": ("No rush.", "Take your time.", "Can wait.", "No hurry.", "Low priority."),
    "rambling": (
        "There is no hurry, I am retired and have all the time in the world.",
        "It can wait until you have seen to the others, I am in no rush.",
        "Answer whenever you like, we are on holiday for three weeks anyway.",
        "There is no rush, I just wanted to have it off my mind.",
    ),
    "broken": (
        "Please no hurry, I can wait.",
        "You can take your time, no hurry.",
        "It is no rush for me.",
        "I can wait some weeks, no problem.",
    ),
}

# Asides that name another product, a number that is no order number, or something that went well.
ASIDES: dict[Tone, tuple[str, ...]] = {
    "polite": (
        "I also own the {other}, which works very well.",
        "I paid {price} on {date}.",
        "Your colleague kindly gave me ticket number {ticket}.",
        "My first message was sent on {date}.",
        'You replied on {date}: "We will look into it within {days} days."',
        "My wife has your {other} and is very happy with it.",
    ),
    "angry": (
        "I paid {price} for this!",
        'On {date} you wrote "please allow {days} days". Please what?',
        "I have called {days} times already.",
        "At least the {other} from another shop works.",
        "I already have ticket {ticket} and no answer.",
        "The {other} I bought from you in {year} was fine.",
    ),
    "terse": (
        "Paid {price}.",
        "Bought {date}.",
        "Earlier ticket: {ticket}.",
        "The {other} is fine.",
        "Tel. {phone}.",
    ),
    "rambling": (
        "I have the {other} as well, in the kitchen, and nothing was ever wrong with that one.",
        "I paid {price}, which is what my first {other} cost back in {year}.",
        'The gentleman on the phone said "about {days} days", but that was on {date}.',
        "I had a ticket about the {other} too, number {ticket}, but that is settled.",
        "My son wants the {other} for his birthday on {date}, by the way.",
    ),
    "broken": (
        "I have pay {price} at {date}.",
        "I have also {other}, is very good.",
        "Before I have ticket {ticket} but nobody answer.",
        'Your friend on phone say "{days} days".',
        "My brother have the {other}, with it no problem.",
    ),
}

# Things that went well, by the categories of complaint that they cannot belong to.
PRAISE: dict[Category, tuple[str, ...]] = {
    "billing": ("Delivery was quick.", "The box arrived in good shape.", "Signing in was easy."),
    "delivery": ("The payment went through at once.", "The bill is correct.", "Signing in to your site was easy."),
    "damage": ("Delivery was quick, though.", "The bill is correct.", "The payment went through at once."),
    "login": ("Delivery was quick.", "The bill was correct.", "The box arrived in good shape."),
    "refund": ("Signing in to your site was easy.", "Your site is easy to use.", "The courier was friendly."),
    "feature": ("Delivery was quick.", "The bill was correct.", "It arrived in good shape."),
}

ENDINGS: dict[Tone, tuple[str, ...]] = {
    "polite": (
        "Thank you very much, {name}",
        "Kind regards, {name}",
        "Best wishes, {name}, {town}",
        "Many thanks, {name} (tel. {phone})",
        "Thank you for your help!",
        "Thank you!",
        "{name}",
    ),
    "angry": ("{name}", "I expect a proper answer. {name}", "{name}, {phone}", "Do your job.", ""),
    "terse": ("Thanks.", "{name}", "Thx, {name}", "", ""),
    "rambling": (
        "Greetings to your whole team, {name}",
        "Well, that is all from me. {name}, {town}",
        "You can call me on {phone} after lunch. {name}",
        "Yours, {name}, customer since {year}",
    ),
    "broken": (
        "Thank you and good day, {name}",
        "I wait your answer. {name}",
        "With respect, {name}",
        "Thanks a lot.",
        "{name}, {phone}",
    ),
}

NAMES = (
    "Maria Lopez", "Tom Baker", "A. Novak", "Priya Nair", "J. Olsen", "Lena Vogt", "Sam Carter", "Yuki Tanaka",
    "Omar Haddad", "Grace Kim", "P. Rossi", "Nina Kowalski", "David Brown", "Elif Kaya", "Hugo Martin", "Ruth Adler",
)  # fmt: skip

TOWNS = (
    "Leeds", "Porto", "Graz", "Dublin", "Bergen", "Lyon", "Krakow", "Turin", "Ghent", "Bristol", "Malmo", "Basel",
)  # fmt: skip

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
