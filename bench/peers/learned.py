"""A text regressor: TF-IDF and logistic regression, where papers fine-tune an encoder or embed with a hosted model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import FeatureUnion

from . import Floats

FOLDS = 5


class TextRegressor:
    """P(label) of a text, from words and pairs of words and from characters within words."""

    settings = "TF-IDF of words (1-2) and characters (3-4) + logistic regression"

    def fit(self, texts: Sequence[str], label: Floats, seed: int = 0) -> Floats:
        """Learn from labels (0 or 1), shape (n,); the estimates for the same texts by cross-fitting, shape (n,).

        With fewer than two texts of either label, all estimates are the share of label 1.
        """
        self._rate = float(label.mean())
        folds = min(FOLDS, int(label.sum()), int((1 - label).sum()))
        self._model = LogisticRegression(class_weight="balanced", solver="liblinear") if folds > 1 else None
        if self._model is None:
            return np.full(len(texts), self._rate)
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True, min_df=3)
        self._features = FeatureUnion([("words", words), ("characters", characters)])
        features = self._features.fit_transform(texts)
        split = StratifiedKFold(folds, shuffle=True, random_state=seed)
        held_out = cross_val_predict(self._model, features, label, cv=split, method="predict_proba")[:, 1]
        self._model.fit(features, label)
        return np.asarray(held_out, dtype=np.float64)

    def predict(self, texts: Sequence[str]) -> Floats:
        """Estimates for other texts, shape (n,)."""
        if self._model is None:
            return np.full(len(texts), self._rate)
        return np.asarray(self._model.predict_proba(self._features.transform(texts))[:, 1], dtype=np.float64)
