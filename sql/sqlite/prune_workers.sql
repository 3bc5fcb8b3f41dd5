-- Forget workers that were not seen for as long as they had said. There are few workers: no index, which each beat of each
-- of them would move.
DELETE FROM creche_workers WHERE expires_at <= :now
