-- What a commit waits for, as our sessions have it.
SELECT current_setting('fsync')::boolean, current_setting('full_page_writes')::boolean,
       current_setting('synchronous_commit')
