-- The check of a document against a JSON Schema has a budget of steps. A schema that leads back to
-- itself through oneOf or anyOf multiplies the work with each level of the document.
--
-- A step is one schema applied to one value: 3 to 6 microseconds. Rules that search an object, and
-- large values, cost more steps. The budget is 50,000 steps, and one more for each 4 bytes of the
-- document. An element of jsonb takes 4 bytes at least, so honest schemas do not use it up.
CREATE OR REPLACE FUNCTION tasker.schema_problem(schema jsonb, value jsonb, path text DEFAULT '$') RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    budget int;
    answer text;
BEGIN
    IF schema IS NULL THEN
        RETURN NULL;
    END IF;
    -- Nearly all values fit, and paths are only for messages: the first look
    -- does without them. #> '{}' is the value itself, read from where large
    -- values are kept: once, not at each look at a part of it.
    value := coalesce(value, 'null') #> '{}';
    schema := schema #> '{}';
    -- A level takes 8 bytes at least, so small documents need no search.
    IF pg_column_size(value) > 1600 AND jsonb_path_exists(value, 'strict $.**{201}') THEN
        RETURN path || ' is nested more than 200 levels deep';
    END IF;
    budget := 50000 + least(pg_column_size(value) / 4, 700000);
    answer := tasker.schema_problem_within(schema, schema, value, '', 0, budget);
    IF NOT starts_with(answer, '!') THEN
        RETURN NULL;
    ELSIF substr(answer, 2, 7)::int = 0 THEN -- the check did not come to an end
        RETURN path || substr(answer, 9);
    END IF;
    RETURN substr(tasker.schema_problem_within(schema, schema, value, path, 0, budget), 9);
END $$;

-- The answer for a value that does not fit: a mark, the steps that are left in 7 characters, and the
-- problem. 0 steps end the whole check: no other branch of oneOf or anyOf is tried.
CREATE FUNCTION tasker.schema_refusal(budget int, problem text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT '!' || lpad(CASE WHEN budget = 0 THEN 0 ELSE greatest(budget, 1) END::text, 7) || problem
$$;

-- The same for a part of a schema; root is where a $ref is looked up. With an
-- empty path a problem may be empty too, except the one that ends the check: each
-- level puts its part of the path before that one. The function speaks of rule
-- and given, because jsonb_each has columns key and value.
--
-- It returns the steps that are left of the budget, in decimal, for a value that fits, and otherwise
-- what schema_refusal makes. Text is the cheapest form for two results: a record costs PL/pgSQL
-- half as much as the whole step.
--
-- Recursion ends where the value does, except for a $ref that leads back to
-- itself, which the template package refuses. The depth ends that too, before
-- Postgres' stack does.
DROP FUNCTION tasker.schema_problem_within(jsonb, jsonb, jsonb, text, int);
CREATE FUNCTION tasker.schema_problem_within(root jsonb, rule jsonb, given jsonb, path text, depth int, budget int) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    kind       text := jsonb_typeof(given);
    answer     text;
    fits       boolean;
    properties jsonb;
    part       record;
    part_rule  jsonb;
    name       text;
    n          numeric;
    words      text;
    matched    int;
BEGIN
    budget := budget - 1 - pg_column_size(given) / 1024;
    IF budget <= 0 THEN
        RETURN tasker.schema_refusal(0, path || ' is where the check ran out of steps; simplify the oneOf, anyOf and allOf of the schema that lead back to themselves');
    ELSIF depth > 250 THEN
        RETURN tasker.schema_refusal(0, path || ' is behind more than 250 nested rules of the schema; nest the document or the schema less');
    ELSIF jsonb_typeof(rule) = 'boolean' THEN
        RETURN CASE WHEN rule = 'false' THEN tasker.schema_refusal(budget, path || ' is not allowed') ELSE budget::text END;
    END IF;

    -- Of any kind.
    IF rule ? 'type' THEN
        fits := rule -> 'type' ? kind;
        IF NOT fits AND kind = 'number' AND rule -> 'type' ? 'integer' THEN
            n := (given #>> '{}')::numeric;
            fits := n = trunc(n);
        END IF;
        IF NOT fits THEN
            IF path = '' THEN
                RETURN tasker.schema_refusal(budget, '');
            END IF;
            SELECT string_agg(tasker.schema_word(t #>> '{}'), ' or ' ORDER BY i) INTO words
            FROM jsonb_array_elements(CASE jsonb_typeof(rule -> 'type') WHEN 'array' THEN rule -> 'type' ELSE jsonb_build_array(rule -> 'type') END)
                WITH ORDINALITY AS types(t, i);
            RETURN tasker.schema_refusal(budget, format('%s must be %s, not %s', path, words, tasker.schema_shown(given)));
        END IF;
    END IF;
    IF rule ? 'enum' THEN
        budget := budget - jsonb_array_length(rule -> 'enum') / 32;
        IF EXISTS (SELECT FROM jsonb_array_elements(rule -> 'enum') AS e(allowed) WHERE e.allowed = given) THEN
            NULL;
        ELSIF path = '' THEN
            RETURN tasker.schema_refusal(budget, '');
        ELSE
            SELECT string_agg(tasker.schema_shown(e.allowed), ', ' ORDER BY i) INTO words
            FROM jsonb_array_elements(rule -> 'enum') WITH ORDINALITY AS e(allowed, i) WHERE i <= 20;
            RETURN tasker.schema_refusal(budget, format('%s must be one of %s%s, not %s', path, words,
                CASE WHEN jsonb_array_length(rule -> 'enum') > 20 THEN format(' and %s more', jsonb_array_length(rule -> 'enum') - 20) END,
                tasker.schema_shown(given)));
        END IF;
    END IF;
    IF rule ? 'const' AND given <> rule -> 'const' THEN
        RETURN tasker.schema_refusal(budget, format('%s must be %s, not %s', path, tasker.schema_shown(rule -> 'const'), tasker.schema_shown(given)));
    END IF;

    CASE kind
    WHEN 'number' THEN
        IF rule ?| '{minimum,maximum,exclusiveMinimum,exclusiveMaximum,multipleOf}' THEN
            n := (given #>> '{}')::numeric;
            IF n < (rule ->> 'minimum')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must be at least %s, not %s', path, rule ->> 'minimum', tasker.schema_shown(given)));
            ELSIF n > (rule ->> 'maximum')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must be at most %s, not %s', path, rule ->> 'maximum', tasker.schema_shown(given)));
            ELSIF n <= (rule ->> 'exclusiveMinimum')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must be more than %s, not %s', path, rule ->> 'exclusiveMinimum', tasker.schema_shown(given)));
            ELSIF n >= (rule ->> 'exclusiveMaximum')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must be less than %s, not %s', path, rule ->> 'exclusiveMaximum', tasker.schema_shown(given)));
            ELSIF n % (rule ->> 'multipleOf')::numeric <> 0 THEN
                RETURN tasker.schema_refusal(budget, format('%s must be a multiple of %s, not %s', path, rule ->> 'multipleOf', tasker.schema_shown(given)));
            END IF;
        END IF;
    WHEN 'string' THEN
        IF rule ?| '{minLength,maxLength}' THEN
            n := char_length(given #>> '{}');
            IF n < (rule ->> 'minLength')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at least %s characters, not %s', path, rule ->> 'minLength', n));
            ELSIF n > (rule ->> 'maxLength')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at most %s characters, not %s', path, rule ->> 'maxLength', n));
            END IF;
        END IF;
        IF rule ? 'pattern' THEN
            budget := budget - pg_column_size(given) / 128;
            IF (given #>> '{}') !~ (rule ->> 'pattern') THEN
                RETURN tasker.schema_refusal(budget, format('%s must match the pattern %s, and %s does not', path, rule ->> 'pattern', tasker.schema_shown(given)));
            END IF;
        END IF;
    WHEN 'array' THEN
        IF rule ?| '{minItems,maxItems}' THEN
            n := jsonb_array_length(given);
            IF n < (rule ->> 'minItems')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at least %s items, not %s', path, rule ->> 'minItems', n));
            ELSIF n > (rule ->> 'maxItems')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at most %s items, not %s', path, rule ->> 'maxItems', n));
            END IF;
        END IF;
        IF rule -> 'uniqueItems' = 'true' THEN
            budget := budget - pg_column_size(given) / 128;
            SELECT i.item, min(i.at) - 1 AS first, max(i.at) - 1 AS again INTO part
            FROM jsonb_array_elements(given) WITH ORDINALITY AS i(item, at)
            GROUP BY i.item HAVING count(*) > 1 ORDER BY min(i.at) LIMIT 1;
            IF FOUND THEN
                RETURN tasker.schema_refusal(budget, format('%s must not hold an item twice: [%s] and [%s] are %s', path, part.first, part.again, tasker.schema_shown(part.item)));
            END IF;
        END IF;
        IF rule ? 'items' THEN
            part_rule := rule -> 'items';
            FOR at IN 0 .. jsonb_array_length(given) - 1 LOOP
                answer := tasker.schema_problem_within(root, part_rule, given -> at,
                    CASE path WHEN '' THEN '' ELSE path || '[' || at || ']' END, depth + 1, budget);
                IF starts_with(answer, '!') THEN
                    RETURN CASE path WHEN '' THEN overlay(answer PLACING '[' || at || ']' FROM 9 FOR 0) ELSE answer END;
                END IF;
                budget := answer;
            END LOOP;
        END IF;
    WHEN 'object' THEN
        IF rule ? 'required' THEN
            budget := budget - 1;
            SELECT r.name INTO words FROM jsonb_array_elements_text(rule -> 'required') WITH ORDINALITY AS r(name, at)
            WHERE NOT given ? r.name ORDER BY r.at LIMIT 1;
            IF FOUND THEN
                RETURN tasker.schema_refusal(budget, tasker.schema_path(path, words) || ' is missing');
            END IF;
        END IF;
        IF rule ?| '{minProperties,maxProperties}' THEN
            SELECT count(*) INTO n FROM jsonb_object_keys(given);
            IF n < (rule ->> 'minProperties')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at least %s keys, not %s', path, rule ->> 'minProperties', n));
            ELSIF n > (rule ->> 'maxProperties')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at most %s keys, not %s', path, rule ->> 'maxProperties', n));
            END IF;
        END IF;
        properties := rule -> 'properties';
        IF properties IS NOT NULL THEN
            budget := budget - 1 - pg_column_size(properties) / 256;
            FOR name, part_rule IN SELECT p.key, p.value FROM jsonb_each(properties) p LOOP
                CONTINUE WHEN NOT given ? name;
                answer := tasker.schema_problem_within(root, part_rule, given -> name,
                    CASE path WHEN '' THEN '' ELSE tasker.schema_path(path, name) END, depth + 1, budget);
                IF starts_with(answer, '!') THEN
                    RETURN CASE path WHEN '' THEN overlay(answer PLACING tasker.schema_path('', name) FROM 9 FOR 0) ELSE answer END;
                END IF;
                budget := answer;
            END LOOP;
        END IF;
        IF rule ? 'patternProperties' THEN
            budget := budget - 1 - pg_column_size(given) / 128;
            FOR part IN SELECT g.key, p.value AS rule, g.value AS given
                FROM jsonb_each(given) g JOIN jsonb_each(rule -> 'patternProperties') p ON g.key ~ p.key ORDER BY g.key COLLATE "C", p.key COLLATE "C"
            LOOP
                answer := tasker.schema_problem_within(root, part.rule, part.given,
                    CASE path WHEN '' THEN '' ELSE tasker.schema_path(path, part.key) END, depth + 1, budget);
                IF starts_with(answer, '!') THEN
                    RETURN CASE path WHEN '' THEN overlay(answer PLACING tasker.schema_path('', part.key) FROM 9 FOR 0) ELSE answer END;
                END IF;
                budget := answer;
            END LOOP;
        END IF;
        IF rule ? 'additionalProperties' AND rule -> 'additionalProperties' <> 'true' THEN
            budget := budget - 1 - pg_column_size(given) / 128;
            FOR part IN SELECT g.key, g.value AS given FROM jsonb_each(given) g
                WHERE NOT coalesce(properties ? g.key, false)
                  AND NOT EXISTS (SELECT FROM jsonb_object_keys(coalesce(rule -> 'patternProperties', '{}')) AS p(pattern) WHERE g.key ~ p.pattern)
                ORDER BY g.key COLLATE "C"
            LOOP
                IF rule -> 'additionalProperties' = 'false' THEN
                    SELECT string_agg(k.key, ', ' ORDER BY k.key COLLATE "C") INTO words
                    FROM (SELECT key FROM jsonb_object_keys(coalesce(properties, '{}')) AS p(key) ORDER BY key COLLATE "C" LIMIT 50) k;
                    RETURN tasker.schema_refusal(budget, tasker.schema_path(path, part.key) || ' is not allowed' || coalesce('; there may be: ' || words, ''));
                END IF;
                answer := tasker.schema_problem_within(root, rule -> 'additionalProperties', part.given,
                    CASE path WHEN '' THEN '' ELSE tasker.schema_path(path, part.key) END, depth + 1, budget);
                IF starts_with(answer, '!') THEN
                    RETURN CASE path WHEN '' THEN overlay(answer PLACING tasker.schema_path('', part.key) FROM 9 FOR 0) ELSE answer END;
                END IF;
                budget := answer;
            END LOOP;
        END IF;
    ELSE
        NULL; -- true, false and null have no keywords of their own
    END CASE;

    -- Other schemas for the same value.
    IF NOT rule ?| '{$ref,allOf,anyOf,oneOf,not}' THEN
        RETURN budget;
    END IF;
    IF rule ? '$ref' THEN
        IF rule ->> '$ref' = '#' THEN
            answer := tasker.schema_problem_within(root, root, given, path, depth + 1, budget);
        ELSE
            answer := tasker.schema_problem_within(root, root #> string_to_array(substr(rule ->> '$ref', 3), '/'), given, path, depth + 1, budget);
        END IF;
        IF starts_with(answer, '!') THEN
            RETURN answer;
        END IF;
        budget := answer;
    END IF;
    IF rule ? 'allOf' THEN
        FOR at IN 0 .. jsonb_array_length(rule -> 'allOf') - 1 LOOP
            answer := tasker.schema_problem_within(root, rule -> 'allOf' -> at, given, path, depth + 1, budget);
            IF starts_with(answer, '!') THEN
                RETURN answer;
            END IF;
            budget := answer;
        END LOOP;
    END IF;
    IF rule ? 'anyOf' THEN
        words := NULL;
        FOR at IN 0 .. jsonb_array_length(rule -> 'anyOf') - 1 LOOP
            answer := tasker.schema_problem_within(root, rule -> 'anyOf' -> at, given, path, depth + 1, budget);
            EXIT WHEN NOT starts_with(answer, '!');
            budget := substr(answer, 2, 7);
            IF budget = 0 THEN
                RETURN answer;
            END IF;
            words := concat_ws('; or: ', words, substr(answer, 9));
        END LOOP;
        IF NOT starts_with(answer, '!') THEN
            budget := answer;
        ELSE
            RETURN tasker.schema_refusal(budget, format('%s fits none of the %s schemas of anyOf: %s', path, jsonb_array_length(rule -> 'anyOf'), left(words, 500)));
        END IF;
    END IF;
    IF rule ? 'oneOf' THEN
        matched := 0;
        words := NULL;
        FOR at IN 0 .. jsonb_array_length(rule -> 'oneOf') - 1 LOOP
            answer := tasker.schema_problem_within(root, rule -> 'oneOf' -> at, given, path, depth + 1, budget);
            IF NOT starts_with(answer, '!') THEN
                matched := matched + 1;
                budget := answer;
                CONTINUE;
            END IF;
            budget := substr(answer, 2, 7);
            IF budget = 0 THEN
                RETURN answer;
            END IF;
            words := concat_ws('; or: ', words, substr(answer, 9));
        END LOOP;
        IF matched = 0 THEN
            RETURN tasker.schema_refusal(budget, format('%s fits none of the %s schemas of oneOf: %s', path, jsonb_array_length(rule -> 'oneOf'), left(words, 500)));
        ELSIF matched > 1 THEN
            RETURN tasker.schema_refusal(budget, format('%s fits %s of the %s schemas of oneOf, and may fit one', path, matched, jsonb_array_length(rule -> 'oneOf')));
        END IF;
    END IF;
    IF rule ? 'not' THEN
        answer := tasker.schema_problem_within(root, rule -> 'not', given, path, depth + 1, budget);
        IF NOT starts_with(answer, '!') THEN
            budget := answer;
            RETURN tasker.schema_refusal(budget, format('%s must not fit the schema %s', path, left((rule -> 'not')::text, 200)));
        END IF;
        budget := substr(answer, 2, 7);
        IF budget = 0 THEN
            RETURN answer;
        END IF;
    END IF;
    RETURN budget;
END $$;
