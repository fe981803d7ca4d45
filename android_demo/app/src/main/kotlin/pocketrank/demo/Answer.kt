package pocketrank.demo

import pocketrank.PocketRankError
import java.io.IOException

/** Does some work; what is to be told on the UI thread: its answer, or why there is none. A full disk ends no app. */
fun <T> answer(failed: (String) -> Unit, then: (T) -> Unit, what: () -> T): () -> Unit = try {
    val found = what();
    { then(found) }
} catch (error: PocketRankError) {
    { failed(error.message.orEmpty()) }
} catch (error: IOException) {
    { failed("${error.message}; check the phone's free space") }
}
