package pocketrank.sync

import pocketrank.BadInput
import pocketrank.BadJson
import pocketrank.Json
import pocketrank.Pack
import pocketrank.PocketRankError
import pocketrank.Ranker
import pocketrank.oneLine
import java.io.ByteArrayOutputStream
import java.io.IOException
import java.io.InputStream
import java.io.InterruptedIOException
import java.net.HttpURLConnection
import java.net.MalformedURLException
import java.net.URL
import java.net.URLEncoder
import java.util.concurrent.ExecutionException
import java.util.concurrent.FutureTask
import java.util.concurrent.TimeUnit.MILLISECONDS
import java.util.concurrent.TimeoutException

/** What a sync came to; GONE: the server was told to forget the user, and so did the ranker, up to that time. */
enum class Synced { NEW, SAME, NONE, GONE, OFFLINE, REFUSED }

/**
 * Gets the newest pack of the token's user from `pocketrank serve`; see docs/sync.md. Only packs: a new bundle comes with
 * a new version of the app.
 *
 * The one part of the demo that needs the INTERNET permission. Redirects are not followed, so a token reaches no other
 * host; http is for this machine, or, where `insecure`, for a laptop beside a debug build. Call it off the UI thread, and
 * best on a thread that nothing else waits for: an answer may take a minute.
 *
 * @throws BadInput not an address that a token may be sent to.
 */
class PackClient(address: String, private val token: String, insecure: Boolean = false) {
    private val where = address.trimEnd('/')

    /** What the last [sync] that was refused said. */
    @Volatile
    var problem: String? = null
        private set

    /** What all of an answer may take; fewer milliseconds in tests. */
    internal var wholeMs = 60_000L

    private class Answer(val status: Int, val etag: String?, val content: ByteArray)

    init {
        val url = try {
            URL(where)
        } catch (_: MalformedURLException) {
            null
        }
        val isSafe = url?.protocol == "https" || url?.protocol == "http" && (insecure || url.host in HERE)
        if (!isSafe || url.host.isEmpty() || url.userInfo != null || url.port > PORT_MOST) {
            throw BadInput("sync: $where is not an https address, and a token is sent to no other; give the server's")
        }
        if (token.isEmpty() || token.any { it <= ' ' || it > '~' }) {
            throw BadInput("sync: the token has spaces or control characters in it; give it as it was issued")
        }
    }

    /**
     * Asks once. Whatever goes wrong on the way, the ranker goes on with what it had; so it does when somebody made it
     * forget, or closed it, before the answer was there: that is of a user who has gone.
     */
    fun sync(ranker: Ranker): Synced {
        problem = null
        return try {
            val (epoch, etag) = synchronized(ranker) { ranker.epoch to ranker.etag }
            val query = URLEncoder.encode(ranker.bundle.manifest.encoderId, "UTF-8")
            val answer = asked(URL("$where/v1/pack?encoder_id=$query").openConnection() as HttpURLConnection, etag)
            synchronized(ranker) {
                if (ranker.epoch == epoch) taken(answer, ranker) else refused(GONE_MEANWHILE)
            }
        } catch (_: IOException) {
            Synced.OFFLINE
        } catch (error: PocketRankError) {
            refused(error.message.orEmpty())
        }
    }

    /** Asks on a thread of its own, as a server that sends a byte now and then holds that for ever. */
    private fun asked(connection: HttpURLConnection, etag: String?): Answer {
        val asking = begun {
            try {
                answer(connection, etag)
            } finally {
                connection.disconnect()
            }
        }
        try {
            return asking.get(wholeMs, MILLISECONDS)
        } catch (failed: ExecutionException) {
            val error = failed.cause
            // Networks of phones raise more than they say, such as SecurityException without the permission.
            throw if (error is RuntimeException && error !is PocketRankError) BadInput("$where cannot be asked: $error") else error!!
        } catch (_: TimeoutException) {
            throw InterruptedIOException("no whole answer in $wholeMs ms")
        } catch (_: InterruptedException) {
            Thread.currentThread().interrupt()
            throw InterruptedIOException()
        } finally {
            if (asking.cancel(true)) begun(connection::disconnect) // which may itself wait for a read
        }
    }

    private fun <T> begun(what: () -> T) =
        FutureTask(what).also { Thread(it, "pocketrank sync").apply { isDaemon = true }.start() }

    private fun answer(connection: HttpURLConnection, etag: String?): Answer {
        connection.instanceFollowRedirects = false
        connection.connectTimeout = CONNECT_MS
        connection.readTimeout = READ_MS
        connection.setRequestProperty("Authorization", "Bearer $token")
        etag?.let { connection.setRequestProperty("If-None-Match", it) }
        val status = connection.responseCode
        val stream = when (status) {
            HttpURLConnection.HTTP_OK -> connection.inputStream
            HttpURLConnection.HTTP_GONE -> connection.errorStream
            else -> null
        }
        return Answer(status, connection.getHeaderField("ETag"), stream?.let(::body) ?: ByteArray(0))
    }

    private fun taken(answer: Answer, ranker: Ranker): Synced = when (answer.status) {
        HttpURLConnection.HTTP_OK -> {
            ranker.load(answer.content, "the synced pack")
            ranker.etag = answer.etag
            Synced.NEW
        }
        HttpURLConnection.HTTP_NOT_MODIFIED -> Synced.SAME
        HttpURLConnection.HTTP_NOT_FOUND -> Synced.NONE
        HttpURLConnection.HTTP_GONE -> {
            val untilUs = goneUntil(answer.content)
            if (untilUs == null) {
                refused("$where answered 410, and does not say up to when the user was forgotten")
            } else {
                ranker.forget(untilUs)
                Synced.GONE
            }
        }
        in SERVER_ERRORS, TOO_MANY -> Synced.OFFLINE
        else -> refused("$where answered ${answer.status}")
    }

    private fun refused(why: String): Synced {
        problem = oneLine(why)
        return Synced.REFUSED
    }

    /** The time in what stands in the place of a forgotten user's pack; null for anything else. */
    private fun goneUntil(content: ByteArray): Long? = try {
        val found = Json.read(content, GONE_MOST, deepest = 4) as? Map<*, *>
        (found?.get("until_us") as? Long)?.takeIf { found["format"] == GONE }
    } catch (_: BadJson) {
        null
    }

    private fun body(stream: InputStream): ByteArray {
        val found = ByteArrayOutputStream()
        val block = ByteArray(BLOCK)
        while (true) {
            if (Thread.interrupted()) throw InterruptedIOException("nobody waits for it any more")
            val n = stream.read(block)
            if (n < 0) return found.toByteArray()
            found.write(block, 0, n)
            if (found.size() > Pack.LARGEST) throw BadInput("the synced pack: more than ${Pack.LARGEST} bytes; nothing of it was kept")
        }
    }

    private companion object {
        const val CONNECT_MS = 5_000
        const val READ_MS = 10_000
        const val BLOCK = 8192
        const val PORT_MOST = 65_535
        const val TOO_MANY = 429
        const val GONE_MEANWHILE = "the user was forgotten meanwhile, or the ranker closed; sync again"
        const val GONE = "pocketrank.gone/1"
        const val GONE_MOST = 1000L
        val SERVER_ERRORS = 500..599
        val HERE = setOf("localhost", "127.0.0.1")
    }
}
