"""The trained demonstration model: data made on the fly, styles as filters, training, recipe."""
