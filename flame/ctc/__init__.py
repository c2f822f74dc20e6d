"""From the steps of a CTC model to text: greedy and beam search, n-gram models, times of words, error rates."""
