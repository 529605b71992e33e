"""Words of made-up posts: four themes a topic, and what all texts share."""

THEMES: dict[str, tuple[str, str, str, str]] = {
    "business": (
        "bank loan interest rate mortgage lender credit deposit central inflation savings debt",
        "oil gas barrel pipeline crude drilling energy refinery export fuel producer opec",
        "airline carmaker factory merger takeover shares profit quarter dividend shareholder bid",
        "retail shop christmas sales discount consumer supermarket chain spending customer price",
    ),
    "covid": (
        "vaccine dose jab trial pfizer immunity booster rollout appointment clinic nurse",
        "lockdown mask distancing quarantine curfew travel restriction border rule school closed",
        "cases deaths hospital ventilator intensive wave outbreak tally confirmed tested positive",
        "home baking zoom family friends walk dog quiet kitchen garden together weekend",
    ),
    "entertainment": (
        "album band song chart tour concert guitar singer stage festival lyrics drummer",
        "television series presenter channel audience comedy soap drama viewers broadcast episode",
        "award ceremony oscar nominee winner red carpet jury prize golden globe category",
        "book novel author museum exhibition painting opera theatre ballet orchestra gallery",
    ),
    "movie": (
        "horror zombie monster blood scream killer haunted creepy gore vampire slasher ghost",
        "romance love wedding kiss heart couple charming sweet tears date chemistry relationship",
        "action explosion chase gun hero fight stunt villain car spy mission bullet",
        "animation cartoon children disney puppet fairy magic adventure talking animal funny voice",
    ),
    "politics": (
        "election vote poll candidate campaign ballot constituency party turnout manifesto swing",
        "minister parliament bill amendment lords commons debate committee reform whip speech",
        "tax budget chancellor spending pension welfare deficit treasury council fund benefit",
        "war iraq army treaty embassy sanctions europe union constitution diplomat asylum terror",
    ),
    "sport": (
        "football goal striker midfield league club manager penalty transfer defender keeper cup",
        "rugby try scrum coach six nations lock flanker tackle kick squad ireland",
        "tennis serve set open seed court grand slam volley final champion baseline",
        "athletics sprint marathon olympic medal record doping relay hurdles coach track indoor",
    ),
    "tech": (
        "phone mobile handset camera network operator text screen battery ringtone signal wireless",
        "virus spam hacker security password phishing worm attack antivirus firewall fraud patch",
        "game console player xbox nintendo playstation graphics level studio title release arcade",
        "broadband internet search engine website blog download music file sharing browser user",
    ),
}
"""Topic to its themes; a theme is a dozen words that its posts use more than others."""

COMMON = (
    *("the", "a", "of", "to", "and", "in", "for", "on", "with", "that", "it", "is", "was", "has"),
    *("have", "be", "by", "from", "at", "as", "this", "will", "its", "an", "not", "but", "are"),
    *("who", "they", "had", "would", "been", "which", "more", "after", "new", "said", "year"),
    *("people", "first", "last", "two", "over", "time", "also", "one", "than", "could", "about"),
    *("into", "only", "other", "some", "when", "there", "many", "most", "what", "much", "even"),
)
