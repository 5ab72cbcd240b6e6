"""What the rows mean: the result in words, figures, advice, comparison."""
