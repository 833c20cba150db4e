"""What customers of the quickstart's shop complain about, by category, in several wordings.

Each complaint is worded in three ways: `said` in full sentences, `terse` in note form, `broken` as by someone who
learned English late. `{product}` is the product that the ticket is about. A complaint never says how urgent it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Category = Literal["billing", "delivery", "damage", "login", "refund", "feature"]
Tone = Literal["polite", "angry", "terse", "rambling", "broken"]

PRODUCTS = ("camera", "headset", "keyboard", "printer", "router", "speaker", "tablet", "watch")


@dataclass(frozen=True)
class Complaint:
    """One thing that goes wrong, its summary, and its wordings; `{product}` stands in each."""

    category: Category
    summary: str
    said: tuple[str, ...]
    terse: tuple[str, ...]
    broken: tuple[str, ...]

    def worded(self, tone: Tone) -> tuple[str, ...]:
        """The wordings that fit a tone; all but two tones use full sentences."""
        if tone == "terse":
            return self.terse
        return self.broken if tone == "broken" else self.said


COMPLAINTS = (
    # ── billing ──
    Complaint(
        "billing",
        "Charged twice for the {product}.",
        (
            "My card was charged twice for the {product}.",
            "I see two identical payments for one {product} on my bank statement.",
            "You took the money for my {product} two times.",
        ),
        ("Charged twice for one {product}.", "Two payments taken, one {product} bought."),
        ("You have take money two times for the {product}.", "For one {product} I pay double on my card."),
    ),
    Complaint(
        "billing",
        "The invoice for the {product} shows a wrong amount.",
        (
            "The invoice for the {product} shows more than the price on your site.",
            "The amount on my {product} invoice is not the one I agreed to.",
            "Your invoice for the {product} is higher than the price I saw at the checkout.",
        ),
        ("Wrong amount on {product} invoice.", "{product} invoice higher than the listed price."),
        ("The invoice of my {product} have wrong amount.", "On {product} invoice is more than on the site."),
    ),
    Complaint(
        "billing",
        "Unknown fee on the bill for the {product}.",
        (
            "There is a service fee on the bill for my {product} that nobody told me about.",
            "The bill for the {product} lists a fee that I do not recognise.",
            "I found an extra fee on my {product} bill and cannot tell what it is for.",
        ),
        ("Unknown fee on {product} bill.", "Bill for {product} has an extra fee. What is it?"),
        ("On my bill of the {product} is a fee, what for?", "I see strange fee on the {product} bill."),
    ),
    Complaint(
        "billing",
        "The discount code was not applied to the {product}.",
        (
            "The discount code I entered for the {product} was not taken off the bill.",
            "I was billed the full price for the {product} although I used a discount code.",
            "My voucher was accepted for the {product}, yet the bill shows the full price.",
        ),
        ("Discount code missing on {product} bill.", "Billed full price for {product} despite voucher."),
        ("I put discount code for {product} but bill is full price.", "Voucher for {product} not count in the bill."),
    ),
    Complaint(
        "billing",
        "Still billed for the cancelled {product} plan.",
        (
            "I ended the monthly plan for my {product} in spring and you still bill me for it.",
            "The {product} plan that I cancelled keeps being billed every month.",
            "I am being billed for a {product} subscription that I stopped long ago.",
        ),
        ("Still billed for cancelled {product} plan.", "{product} subscription ended, billing goes on."),
        ("I stop the {product} plan but you bill again.", "My {product} plan is cancelled, still you bill me."),
    ),
    # ── delivery ──
    Complaint(
        "delivery",
        "The {product} has not arrived yet.",
        (
            "The {product} should have been here a week ago and has not arrived.",
            "I am still waiting for my {product}, which you sent out long ago.",
            "My {product} has not been delivered, although the promised day has passed.",
        ),
        ("{product} not here yet, a week late.", "Where is my {product}? Not delivered."),
        ("My {product} is not arrive yet, I wait since many days.", "Since one week I am waiting the {product}."),
    ),
    Complaint(
        "delivery",
        "Tracking for the {product} has stopped.",
        (
            "The tracking page for my {product} has not changed for days.",
            "The parcel with the {product} seems stuck; its tracking stopped at the depot.",
            "Tracking says that the {product} left the depot, and then nothing more.",
        ),
        ("{product} parcel stuck, tracking stopped.", "No tracking news on the {product} for days."),
        ("The tracking of {product} is not move since days.", "Parcel of my {product} is stop in the depot."),
    ),
    Complaint(
        "delivery",
        "The {product} is marked delivered but is not there.",
        (
            "The courier marked my {product} as delivered, but nothing is at my door.",
            "Your site says the {product} was handed over, yet nobody here received it.",
            "The {product} shows as delivered and I have no parcel.",
        ),
        ("{product} marked delivered, no parcel here.", "Courier says {product} delivered. It is not."),
        ("It is written {product} delivered but I have nothing.", "Courier say he give the {product}, nobody take it."),
    ),
    Complaint(
        "delivery",
        "The {product} was sent to a wrong address.",
        (
            "The {product} is on its way to an address where I no longer live.",
            "You shipped my {product} to the wrong street.",
            "The parcel with the {product} went to my old address.",
        ),
        ("{product} shipped to wrong address.", "Parcel with {product} went to my old address."),
        ("You send the {product} in wrong address.", "The {product} go to my old address, I live not there."),
    ),
    Complaint(
        "delivery",
        "Customer wants another delivery day for the {product}.",
        (
            "Can the {product} be delivered on another day, as nobody is home on the planned one?",
            "I would like to change the delivery day of my {product}.",
            "Nobody can take in the {product} on the day you chose; please move the delivery.",
        ),
        ("Move delivery day of {product}, nobody home.", "Need another delivery day for the {product}."),
        (
            "Please to change the day of delivery for {product}.",
            "I not home when {product} is delivered, other day please.",
        ),
    ),
    # ── damage ──
    Complaint(
        "damage",
        "The {product} came with a cracked casing.",
        (
            "The casing of the {product} was cracked when I opened the box.",
            "I unpacked the {product} and found a long crack along its side.",
            "There is a crack right across the {product} you sent me.",
        ),
        ("{product} casing cracked on unpacking.", "New {product} has a crack along the side."),
        ("The {product} is come with crack in the case.", "When I open box, the {product} was crack."),
    ),
    Complaint(
        "damage",
        "A button of the {product} is broken off.",
        (
            "The power button of the {product} had broken off in the box.",
            "One button of my {product} lay loose in the packaging.",
            "A button came off the {product} before I had even used it.",
        ),
        ("{product} button broken off in box.", "Power button of new {product} loose."),
        ("The button from {product} is broke in the box.", "One button of {product} is fall off, it is new."),
    ),
    Complaint(
        "damage",
        "The {product} arrived scratched.",
        (
            "The {product} has deep scratches all over the front.",
            "My new {product} came out of the box badly scratched.",
            "The front of the {product} looks as if someone had dragged it over gravel.",
        ),
        ("Deep scratches on new {product}.", "{product} came scratched all over."),
        ("The new {product} have many scratch on front.", "My {product} is scratched, I did not do."),
    ),
    Complaint(
        "damage",
        "The {product} was wet inside its box.",
        (
            "The box was soaked and the {product} inside it is wet.",
            "Water ran out of the {product} when I lifted it from its box.",
            "The {product} got wet on its way here and the packaging fell apart.",
        ),
        ("{product} soaked, water in the box.", "Box wet, {product} wet too."),
        ("The box was with water and {product} is all wet.", "My {product} is come wet, the box also."),
    ),
    Complaint(
        "damage",
        "The plug of the {product} is bent.",
        (
            "The plug of the {product} is bent, so it does not fit any socket.",
            "Someone bent the plug of my {product} before packing it.",
            "The {product} came with a bent plug and cannot be connected.",
        ),
        ("Plug of {product} bent, does not fit.", "{product} arrived with bent plug."),
        ("The plug of {product} is bend, not go in the wall.", "My {product} have the plug bended."),
    ),
    # ── login ──
    Complaint(
        "login",
        "The password for the {product} account is rejected.",
        (
            "My password for the {product} account is rejected every time.",
            "I cannot sign in to my {product} account; it says the password is wrong, and it is not.",
            "The {product} app does not accept my password any more.",
        ),
        ("{product} account rejects my password.", "Password refused in {product} app."),
        ("The {product} app say password wrong but is correct.", "I can not enter {product} account with my password."),
    ),
    Complaint(
        "login",
        "The password reset mail for the {product} account never comes.",
        (
            "I asked for a new password for my {product} account and the mail never comes.",
            "The reset link for the {product} account does not reach me, not even in the spam folder.",
            "I pressed 'forgot password' in the {product} app several times and got no mail.",
        ),
        ("No reset mail for {product} account.", "{product} app: password reset mail never arrives."),
        ("I wait mail for new password of {product} app, not coming.", "Reset mail for {product} account never come."),
    ),
    Complaint(
        "login",
        "The {product} account is locked.",
        (
            "My {product} account has been locked after a few attempts to sign in.",
            "The {product} app says that my account is blocked and lets me no further.",
            "I am locked out of the account that belongs to my {product}.",
        ),
        ("{product} account locked, please unlock.", "Locked out of {product} account."),
        ("My account of {product} is block, I can not go in.", "The {product} app lock my account."),
    ),
    Complaint(
        "login",
        "The sign-in code for the {product} app does not arrive.",
        (
            "The {product} app wants a code from a text message, and the message does not arrive.",
            "I cannot sign in to the {product} app because the six-digit code is never sent.",
            "The sign-in code for my {product} account does not reach my phone.",
        ),
        ("No sign-in code from {product} app.", "{product} app: login code never sent."),
        ("The login code of {product} app is not come on my phone.", "I wait for code of {product} account, nothing."),
    ),
    Complaint(
        "login",
        "The {product} app keeps signing the customer out.",
        (
            "The {product} app signs me out every few minutes.",
            "I have to sign in to the {product} app again each time I open it.",
            "My {product} account will not keep me signed in.",
        ),
        ("{product} app logs me out all the time.", "Signed out of {product} app every few minutes."),
        ("The {product} app put me out, I must login again.", "I login in {product} app and after minutes I am out."),
    ),
    # ── refund ──
    Complaint(
        "refund",
        "The refund for the returned {product} is missing.",
        (
            "I sent the {product} back weeks ago and have not seen my money.",
            "You received my returned {product}, but the refund is still missing.",
            "The refund for the {product} that I returned has not reached my account.",
        ),
        ("Returned {product}, no refund yet.", "Refund for {product} still missing."),
        ("I send back the {product} and money is not come back.", "For returned {product} I still not have refund."),
    ),
    Complaint(
        "refund",
        "Only part of the money for the {product} was refunded.",
        (
            "You refunded only part of what I paid for the {product}.",
            "The refund for my {product} is smaller than it should be.",
            "I got back less than the full price of the {product} that I returned.",
        ),
        ("{product} refund too small.", "Only part of {product} price refunded."),
        ("You give back only part of money for the {product}.", "The refund of my {product} is less than I pay."),
    ),
    Complaint(
        "refund",
        "Customer wants to return the {product} for a refund.",
        (
            "I would like to return the {product}, unused, and get my money back.",
            "The {product} is not what I had in mind; how do I return it for a refund?",
            "I changed my mind about the {product} and want a refund.",
        ),
        ("Want to return {product} for refund.", "{product} unused, please refund."),
        ("I want give back the {product} and have my money.", "I not need the {product}, please refund to me."),
    ),
    Complaint(
        "refund",
        "The cancelled {product} was not refunded.",
        (
            "I cancelled the {product} before it was shipped and was never refunded.",
            "The {product} was cancelled on the same day, yet my money has not come back.",
            "You confirmed that my {product} is cancelled but kept the money.",
        ),
        ("Cancelled {product}, money not returned.", "{product} cancelled before shipping, no refund."),
        ("I cancel the {product} and you not give my money back.", "The {product} is cancelled, refund I not see."),
    ),
    Complaint(
        "refund",
        "The refund for the {product} went to a closed card.",
        (
            "The refund for the {product} went to a card that I have closed.",
            "You sent the money for my returned {product} to an old bank account.",
            "My {product} refund was paid to a card that I no longer have.",
        ),
        ("{product} refund sent to closed card.", "Refund for {product} went to old account."),
        ("The refund of {product} you send to my closed card.", "Money back for {product} is go on closed card."),
    ),
    # ── feature ──
    Complaint(
        "feature",
        "Wish for a dark mode in the {product} app.",
        (
            "It would be nice if the {product} app had a dark mode.",
            "Could you add a dark theme to the {product} app?",
            "I would love to see a dark mode in the app of the {product}.",
        ),
        ("Please add dark mode to {product} app.", "Idea: dark theme in {product} app."),
        ("It is possible to add dark mode in {product} app?", "I wish the {product} app have dark colour."),
    ),
    Complaint(
        "feature",
        "Wish for an export of the {product} settings.",
        (
            "I miss a way to save the settings of the {product} to a file.",
            "Please let us export the settings of the {product}.",
            "Could a later version of the {product} write its settings to a file?",
        ),
        ("Idea: export {product} settings to a file.", "Please add settings export to {product}."),
        ("I want to save the settings of {product} in file, please add.", "Can you make export of {product} settings?"),
    ),
    Complaint(
        "feature",
        "Wish for quiet hours on the {product}.",
        (
            "It would help if the {product} could be told to stay silent at night.",
            "Could you add quiet hours to the {product}?",
            "I suggest a setting that keeps the {product} quiet between set hours.",
        ),
        ("Please add quiet hours to {product}.", "Idea: night mode for {product}."),
        ("Please make that {product} is quiet in the night, some option.", "I wish quiet hours in the {product}."),
    ),
    Complaint(
        "feature",
        "Wish for a second user on the {product}.",
        (
            "Could the {product} be shared by two users, each with their own profile?",
            "My wife and I would like separate profiles on the {product}.",
            "I suggest that the {product} supports a second user.",
        ),
        ("Please add second user to {product}.", "Idea: two profiles on one {product}."),
        ("It is good if two person can use the {product} with own profile.", "Please add more user in {product}."),
    ),
    Complaint(
        "feature",
        "Wish for voice control of the {product}.",
        (
            "I would like to control the {product} by voice.",
            "Have you thought of voice commands for the {product}?",
            "A great addition to the {product} would be voice control.",
        ),
        ("Please add voice control to {product}.", "Idea: voice commands for {product}."),
        ("I want to speak to {product} and it do, please add voice.", "Can you add the voice control for {product}?"),
    ),
)
