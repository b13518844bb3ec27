DELETE FROM tasker.event_subscribers s USING tasker.webhooks w WHERE s.name = 'webhook:' || w.name;
DROP FUNCTION tasker.retry_webhook(text, bigint);
DROP FUNCTION tasker.remove_webhook(text);
DROP FUNCTION tasker.set_webhook(text, text, text[], text, text);
DROP TABLE tasker.webhook_failures;
DROP TABLE tasker.webhooks;
