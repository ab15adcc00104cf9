"""Names of the columns of a request's table."""

PICTURE_COLUMN, QUESTION_COLUMN = "picture", "question"
