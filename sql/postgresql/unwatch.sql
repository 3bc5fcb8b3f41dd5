-- Forget the watches of one watcher whose jobs it knows to be over.
DELETE FROM creche_watches
 WHERE job_id = ANY (%(over)s::uuid[])
   AND watcher = %(watcher)s
