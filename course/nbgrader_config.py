"""Settings of nbgrader for this course; every nbgrader command that is started in this folder reads them."""
c = get_config()  # noqa: F821  (nbgrader puts it here)

c.CourseDirectory.course_id = "scene4m"
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
c.ClearSolutions.text_stub = "YOUR ANSWER HERE"
c.ExecutePreprocessor.timeout = 300       # seconds that one cell of a submission may take
