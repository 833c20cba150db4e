"""Systems judged against each other: what was judged, who is better, how sure that is, and whether judges agree."""
