// Guides before the reference: Sphinx shows hits in the order of their scores.
var Scorer = {
  score: ([page, title, anchor, description, score]) => score + (page.startsWith("_generated/") ? 0 : 100),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
