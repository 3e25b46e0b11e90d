"""The published algorithm of SaHa in plain Python, in float64."""

import numpy as np


def saha(queries, candidates, query, candidate, pool, k, mult, labelled=False):
  """Returns clusters as lists of pairs, the query's own first."""
  owners = {}
  for q, c in zip(query, candidate, strict=True):
    owners.setdefault(int(c), set()).add(int(q))
  last = {int(q): i for i, q in enumerate(query)}
  x = queries.astype(np.float64)
  used, out = set(), []

  def phase(cap):
    again, reused = bool(used), set()
    for i, (q, own) in enumerate(zip(query.tolist(), candidate.tolist(), strict=True)):
      if q in used:
        continue
      found = []
      for c in pool[q].tolist():
        if c in (-1, own):
          continue
        free = sorted(owners[c] - (reused if again else used))
        if not free:
          continue
        found.append(max(free, key=lambda o: (x[q] @ x[o], -o)))
        if len(found) == cap:
          break
      if not found:
        continue
      used.add(q)
      kept = found if labelled else sorted(found, key=lambda o: x[q] @ x[o])
      kept = kept[:k]
      out.append([i, *(last[o] for o in kept)])
      used.update(kept)
      reused.update(kept)

  phase(k * mult)
  phase(2 * k * mult)
  return out
